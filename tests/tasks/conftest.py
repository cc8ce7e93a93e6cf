"""Small folders of images, and `emae` run as a user runs it: in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def flags(**settings) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def emae(*arguments: str, processes: int = 1, **settings) -> list[str]:
    """The command line of `emae ...`, for several processes through torchrun."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [*launcher, "efficient_mae", *arguments, *flags(**settings)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


def kill_when(command: list[str], out: Path, condition: Callable[[], bool]) -> str:
    """Start a command and `kill -9` it, with all its children, as soon as the condition holds; return its stderr."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"ended before it could be killed:\n{process.communicate()[1]}"
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.002)
    for pid in _processes_naming(out):
        os.kill(pid, signal.SIGKILL)
    return process.communicate()[1]


def _processes_naming(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(path).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it ended in the meantime
                continue
    return found
