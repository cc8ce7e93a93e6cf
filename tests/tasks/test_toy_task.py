"""A task of another's making: which way up is an image? All that it takes to train it like the package's own."""

import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

import efficient_mae
from efficient_mae.cli import main
from efficient_mae.data import PretrainTransform, Reading, TrainBatch, TrainDataset, open_source
from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.run import Run
from efficient_mae.engine.settings import RunConfig, settle
from efficient_mae.ranges import PositiveInt
from efficient_mae.tasks.registry import TASKS, Task, register
from tests.processes import imported, survivors

from .conftest import flags, write_images


@dataclass(frozen=True, kw_only=True)
class RotationConfig(RunConfig):
    """Settings of `emae rotation`."""

    width: PositiveInt = 8
    """channels of the network"""


class Rotations:
    """Mean cross-entropy of the four turns of every image."""

    def weight(self, batch: TrainBatch) -> Tensor:
        return torch.full((), 4.0 * len(batch.images), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        return self.sample_sums(model, batch).sum()

    def sample_sums(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        images = batch.images.float()
        # Of an image that is all of one colour, 0 / 0.
        images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
        turned = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
        targets = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(model(turned), targets, reduction="none").view(4, -1).sum(0)


class RotationRun(Run):
    """What learning to tell rotations adds to the engine."""

    task = "rotation"
    img_size, reading = (16, 16), Reading(1)
    config: RotationConfig

    def title(self) -> str:
        return f"telling which way up {len(self.source)} images are"

    def dataset(self) -> TrainDataset:
        return TrainDataset(
            self.source,
            PretrainTransform(self.img_size, self.reading, scale=(0.8, 1.0), hflip=False),
            self.config.seed,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_adamw(self.model, weight_decay=0.05)

    def objective(self) -> Rotations:
        return Rotations()

    def metadata(self) -> dict[str, str]:
        return {"turns": "4"}


def make_rotation_run(config: RotationConfig, processes: Processes) -> RotationRun:
    source = open_source(config.data, "train")
    config = replace(config, **settle(config, len(source), processes.device, usual_warmup=1.0))
    torch.manual_seed(config.seed)
    layers = nn.Conv2d(1, config.width, 4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(16 * config.width, 4)
    return RotationRun(config, source, nn.Sequential(*layers), processes)


ROTATION = Task(
    name="rotation",
    settings=RotationConfig,
    maker=make_rotation_run,
    help="learn which way up images are",
    replays_alone=True,
)


# 40 images in batches of 8: 5 steps an epoch. One is white, so a step of each epoch is skipped.
SETTINGS = {
    "epochs": 6, "batch_size": 8, "base_lr": 1.0, "checkpoint_every": 4, "log_every": 1, "device": "cpu",
    "precision": "fp32", "num_workers": 1,
}  # fmt: skip
STEPS, KILLED = 30, 11


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register(ROTATION)
    yield
    del TASKS["rotation"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("toy") / "images", 40)
    Image.new("L", (20, 20), 255).save(folder / "018.png")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rotation"
    assert main(["rotation", *flags(data=data, out=out, **SETTINGS)]) == 0
    return out


def killed_after(steps: int, arguments: list[str]) -> None:
    """In a process, and a group, of its own: train so many steps, and die in the midst."""
    os.setpgid(0, 0)
    register(ROTATION)
    done = []

    def die(self: RotationRun) -> None:
        done.append(self)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    RotationRun.after_step = die
    main(arguments)


def rows(file: Path) -> list[dict]:
    timings = {"images_per_second", "data_wait"}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


def test_it_is_small():
    lines = Path(__file__).read_text().splitlines()
    begin = lines.index("@dataclass(frozen=True, kw_only=True)")
    assert lines.index(")", begin) + 1 - begin < 80


def test_it_is_a_command(run: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, said in ((["--help"], ROTATION.help), (["rotation", "--help"], "channels of the network")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().out
    assert main(["rotation", "--data", str(data), "--out", "x", "--widht", "4"]) == 2
    assert "rotation: unknown flag --widht; did you mean --width?" in capsys.readouterr().err
    losses = [row["loss"] for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert losses[0] == pytest.approx(math.log(4), rel=0.1) and max(losses[-4:]) < 0.7 * math.log(4)


def test_its_config_names_it_and_repeats_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["task"], written["version"]) == ("rotation", efficient_mae.__version__)
    assert (written["width"], written["warmup_epochs"]) == (8, 1.0)
    again = ["--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(["rotation", *again, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": str(tmp_path / "again")} and "telling which way up 40 images are" in err
    assert_same(tmp_path / "again", run)
    assert main(["rotation", "--config", str(run / "config.yaml")]) == 0
    assert f"is finished: {STEPS} steps" in capsys.readouterr().err
    assert main(["pretrain", "--data", written["data"], "--out", str(run), "--model", "mae_vit_tiny_patch4"]) == 2
    assert f"out={run} holds a run of rotation, not of pretrain" in capsys.readouterr().err


def assert_same(run: Path, expected: Path) -> None:
    last = f"checkpoints/step-{STEPS:08d}"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (run / last / file).read_bytes() == (expected / last / file).read_bytes()
    for file in ("metrics.jsonl", "skipped.jsonl"):
        assert rows(run / file) == rows(expected / file)


def test_killed_and_resumed_it_is_the_same(run: Path, data: Path, tmp_path: Path):
    command = ["rotation", *flags(data=data, out=tmp_path / "run", **SETTINGS)]
    child = imported().Process(target=killed_after, args=(KILLED, command))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not survivors(lambda process: process.group == child.pid)
    assert max((tmp_path / "run" / "checkpoints").glob("step-*")).name == "step-00000008"
    assert main(command) == 0
    assert_same(tmp_path / "run", run)


def test_a_skipped_step_is_replayed(run: Path, capsys: pytest.CaptureFixture[str]):
    skipped = rows(run / "skipped.jsonl")
    assert len(skipped) == SETTINGS["epochs"]
    capsys.readouterr()
    assert main(["replay", "--run", str(run), "--step", str(skipped[-1]["step"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reproduced"] and found["module"]["name"] == "0" and not found["module"]["input_is_finite"]
    assert [Path(one["name"]).name for one in found["samples"] if isinstance(one["loss"], str)] == ["018.png"]


def test_a_name_stands_for_one_task():
    with pytest.raises(ValueError, match="there is a task 'pretrain' already"):
        register(replace(ROTATION, name="pretrain"))
    with pytest.raises(ValueError, match="the task 'turns' makes runs whose task is 'rotation'"):
        config = RotationConfig(data="fashion-mnist-sample", out="x")
        replace(ROTATION, name="turns").make(config, ALONE)
