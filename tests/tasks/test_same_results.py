"""The same seed gives the same bits, whatever else draws random numbers and whoever reads the images.

Of every task, with all that is random in it: crops, flips and masks; RandAugment, random erasing, mixup, cutmix and
drop path in fine-tuning.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from efficient_mae.engine.loop import Step
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

from .conftest import TINY
from .labelled import QUICK, SMALL_ENCODER, stop_after_checkpoints, write_labelled

# 120 images in batches of 24: 5 steps an epoch, so that a run that breaks off after 3 does so in mid-epoch.
SCHEDULE = {"epochs": 2, "batch_size": 24, "num_workers": 0, "checkpoint_every": 3, "keep_checkpoints": 9}
CLASSIFIER = SMALL_ENCODER | QUICK | SCHEDULE
TASKS: dict[str, tuple[Callable[[Any], Any], type, dict[str, Any]]] = {
    "pretrain": (pretrain, PretrainConfig, TINY | SCHEDULE),
    "finetune": (finetune, FinetuneConfig, CLASSIFIER | {"depth": 2, "drop_path": 0.5, "ema_decay": 0.9}),
    "linear-probe": (linear_probe, LinearProbeConfig, CLASSIFIER),
}
# What fine-tuning draws within a step it draws for a micro-batch as a whole: none of that.
UNMIXED = {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0}
TIMINGS = {"images_per_second", "data_wait"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads share a sum changes its rounding, and on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


def train(task: str, data: Path, out: Path, **settings) -> Path:
    function, config, usual = TASKS[task]
    function(config(data=str(data), out=str(out), **(usual | settings)))
    return out


def written(run: Path) -> dict[str, Any]:
    """All that a run learned and found, by file: bytes of weights and optimiser, rows of figures without timings."""
    content: dict[str, Any] = {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*.safetensors")}
    assert len(content) >= 2 * 4, "model and optimiser of four checkpoints"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    content["metrics"] = [{name: row[name] for name in row.keys() - TIMINGS} for row in rows]
    if (run / "results.json").exists():
        content["results"] = json.loads((run / "results.json").read_text())
    return content


def assert_same(run: Path, other: Path) -> None:
    one, two = written(run), written(other)
    assert one.keys() == two.keys()
    assert not [name for name in one if one[name] != two[name]]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The undisturbed run of a task, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("alone")
    return lambda task: folder / task if (folder / task).exists() else train(task, data, folder / task)


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_is_another_run(alone: Callable[[str], Path], data: Path, tmp_path: Path, task: str):
    """Or the tests below would pass whatever is drawn."""
    other = written(train(task, data, tmp_path / "run", seed=1))
    mine = written(alone(task))
    assert all(mine[name] != other[name] for name in mine if name.endswith("model.safetensors"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_workers_change_nothing(alone: Callable[[str], Path], data: Path, tmp_path: Path, task: str, workers: int):
    assert_same(train(task, data, tmp_path / "run", num_workers=workers), alone(task))


def states() -> tuple[Any, ...]:
    """Of every global generator on the host."""
    numpys = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpys[1].tobytes(), numpys[2:], torch.get_rng_state().numpy().tobytes()


def disturb(seed: int) -> None:
    """Put every global generator somewhere else."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def disturbed_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Within, the generators are elsewhere before every step; yields whether each step left them where they were."""
    call, kept = Step.__call__, []

    def watched(self: Step, index: int, *arguments, **options):
        disturb(1000 + index)
        before = states()
        result = call(self, index, *arguments, **options)
        kept.append(states() == before)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", watched)
        yield kept


@pytest.mark.parametrize("task", TASKS)
def test_global_generators_are_neither_used_nor_moved(
    alone: Callable[[str], Path], data: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
):
    """Elsewhere before the run, before each of its steps and before it is resumed: all comes from (seed, step)."""
    with disturbed_steps(monkeypatch) as kept:
        disturb(1)
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            stop_after_checkpoints(patch, 1)
            train(task, data, tmp_path / "run")
        disturb(2)
        train(task, data, tmp_path / "run")
    assert kept == [True] * 10
    assert_same(tmp_path / "run", alone(task))


def test_what_is_shown_on_the_way_changes_nothing(alone: Callable[[str], Path], data: Path, tmp_path: Path):
    """Pictures, accuracies, log lines and checkpoints, and activations that are computed twice."""
    shown = {"panel_every": 1, "knn_every": 1, "log_every": 1, "checkpoint_every": 1, "grad_checkpointing": True}
    run = train("pretrain", data, tmp_path / "a", **shown)
    assert (run / "encoder.safetensors").read_bytes() == (alone("pretrain") / "encoder.safetensors").read_bytes()
    run = train("finetune", data, tmp_path / "b", eval_every=1, log_every=1, grad_checkpointing=True)
    classifiers = [(folder / "classifier.safetensors").read_bytes() for folder in (run, alone("finetune"))]
    assert classifiers[0] == classifiers[1]


def test_a_process_of_its_own_finds_the_same(alone: Callable[[str], Path], data: Path, tmp_path: Path):
    """With sets of strings in another order, and without the tests' checks of types."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.tasks.test_same_results import TASKS, train\n"
        "[train(task, Path(sys.argv[1]), Path(sys.argv[2], task)) for task in TASKS]"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(data), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=200, capture_output=True)
    for task in TASKS:
        assert_same(tmp_path / task, alone(task))


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def distance(run: Path, other: Path) -> float:
    """Between the weights that two runs end with, beside the way that the second's went since its first step."""
    end, others, first = (
        torch.cat([value.flatten() for _, value in sorted(load_file(folder / "model.safetensors").items())])
        for folder in (
            run / "checkpoints" / "step-00000010",
            other / "checkpoints" / "step-00000010",
            other / "checkpoints" / "step-00000001",
        )
    )
    return float((end - others).norm() / (others - first).norm())


@pytest.mark.parametrize(("task", "settings"), [("pretrain", {}), ("finetune", UNMIXED)])
def test_micro_batches_change_nothing_beyond_rounding(data: Path, tmp_path: Path, task: str, settings: dict):
    """Ten steps of float32, in which sums are taken in another order.

    A sum of n terms in another order differs by some sqrt(n) * 2 ** -24 of its terms' size; some 1,000 terms, images
    times tokens, are behind a weight's gradient: 2e-6. AdamW divides a gradient by its own size, so where that is
    nothing but rounding (a key's bias) it moves the weight all the same: hence the yardstick is the way that all
    weights together went, not each weight's own. Were a sample another one, a tenth of it would be missed.
    """
    settings = settings | {"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 99, "base_lr": 0.01}
    whole = train(task, data, tmp_path / "whole", **settings)
    cut = train(task, data, tmp_path / "cut", **settings, accum_iter=4)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6)
    assert distance(cut, whole) < 1e-3
    other = train(task, data, tmp_path / "other", **settings, hflip=False)
    assert distance(other, whole) > 0.1
