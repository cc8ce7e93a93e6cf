"""Small folders of images, and `emae` run as a user runs it: in a process of its own."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficient_mae.cli import main
from tests.forks import ForkServer

# What makes a run small: a second or two of training.
TINY = {
    "model": "mae_vit_tiny_patch4", "img_size": 16, "in_chans": 1, "depth": 1, "decoder_depth": 1,
    "decoder_embed_dim": 32, "precision": "fp32", "num_workers": 1, "mask_ratio": 0.75,
}  # fmt: skip


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 20)) -> Path:
    """Blobs on gradients, so that there is something to learn; PNG, JPEG and WebP in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 30) * 200 + x * 2
        Image.fromarray(blob.astype(np.uint8)).save(folder / f"{number:03}.{('png', 'jpg', 'webp')[number % 3]}")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 43 small images."""
    return write_images(tmp_path_factory.mktemp("images"), 43)


# 43 images in batches of 8: 5 steps an epoch, so most checkpoints lie in mid-epoch, and rows between them.
SHORT = {
    **TINY, "epochs": 16, "batch_size": 8, "warmup_epochs": 2, "checkpoint_every": 4, "log_every": 3,
    "panel_every": 16, "accum_iter": 2,
}  # fmt: skip
TOTAL_STEPS = 16 * 5


@pytest.fixture(scope="session")
def alone(server: ForkServer, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes a short run of so many processes that nobody disturbed; once."""

    @functools.cache
    def undisturbed(processes: int, **settings) -> Path:
        out = tmp_path_factory.mktemp("runs") / "alone"
        ended = server.start(short_run(images, out, **settings), processes).wait()
        assert all(one.status == 0 for one in ended), ended
        return out

    return undisturbed


def short_run(images: Path, out: Path, **settings) -> list[str]:
    """The arguments of `emae` for a short run."""
    return ["pretrain", *flags(data=images, out=out, **SHORT | settings)]


def rows(out: Path) -> list[dict]:
    """What a run has logged, but for the timings."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    timings = {"images_per_second", "data_wait"}
    return [{name: value for name, value in json.loads(line).items() if name not in timings} for line in lines]


def last_row(out: Path) -> int:
    """Steps that the last whole row tells of; 0 if there is none."""
    file = out / "metrics.jsonl"
    lines = (
        [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.exists() else []
    )
    return json.loads(lines[-1])["step"] if lines else 0


def assert_same_result(out: Path, expected: Path) -> None:
    """The last checkpoints and encoders of two runs are the same, bit by bit, and nothing half written is left."""
    for file in ("model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"):
        last, theirs = (max((run / "checkpoints").glob("step-*")) for run in (out, expected))
        assert last.name == theirs.name
        assert (last / file).read_bytes() == (theirs / file).read_bytes(), file
    assert (out / "encoder.safetensors").read_bytes() == (expected / "encoder.safetensors").read_bytes()
    assert not list(out.rglob(".partial-*"))


def flags(**settings) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What `emae ... --json` prints, run in this process."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def emae(*arguments: str, processes: int = 1, restarts: int = 0, **settings) -> list[str]:
    """The command line of `emae ...`, for several processes through torchrun."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        launcher += ["--max-restarts", str(restarts), "-m"]
    return [*launcher, "efficient_mae", *arguments, *flags(**settings)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)
