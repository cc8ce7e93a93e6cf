"""The step over a global batch: the same gradient however the batch is cut."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine import loop
from efficient_mae.engine.faults.preemption import StopRequests
from efficient_mae.engine.logging import MetricsLog, Stopwatch, read_metrics
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import ALONE, Processes, join_processes
from efficient_mae.engine.machine.parallel import parallelize, whole_tensor
from efficient_mae.engine.optim import build_adamw, learning_rate
from efficient_mae.engine.timetable import Timetable
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.mae import MaskPlanner, MaskSettings
from efficient_mae.tasks.pretrain import MethodObjective
from tests.processes import spawn


def batch_of(first: int, last: int) -> TrainBatch:
    """Images and masks first ... last of a fixed global batch of 8, of very unequal difficulty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 24, 24), dtype=torch.uint8, generator=generator)
    noise = torch.rand(8, 36, generator=generator)
    noise[:4, :5] -= 2  # the first four images see one corner only
    masks = MaskPlanner((6, 6), 4, MaskSettings(mask_ratio=0.85, beta=20.0))(noise[first:last])
    return TrainBatch(images[first:last], torch.arange(first, last), None, [], Flat.of(masks))


def gradients_of_a_step(
    processes: Processes, accum_iter: int, clip_grad: float | None = None, parallel: str = "ddp"
) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32, beta=20.0
    ).double()
    trained = parallelize(_Double(model), processes, parallel=parallel)
    seen: list[torch.Tensor] = []
    optimizer = build_adamw(model, 0.05)
    optimizer.register_step_pre_hook(lambda *_: seen.extend(whole_tensor(p.grad).clone() for p in model.parameters()))
    rate = partial(learning_rate, peak=1e-3, warmup_steps=0, total_steps=10)
    objective = MethodObjective(STATISTICS)
    step = Step(trained, optimizer, objective, processes, rate, clip_grad=clip_grad)
    size = 8 // (accum_iter * processes.world_size)
    parts = [(part * processes.world_size + processes.rank) * size for part in range(accum_iter)]
    loss, _ = step(0, [batch_of(first, first + size) for first in parts])
    return processes.sum(loss.clone()).item(), seen


class _Double(torch.nn.Module):
    """Runs the model in float64, so that only a wrong average can make a difference."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, masks):
        return self.model(images.double(), masks)


STATISTICS = ImageStatistics((0.5,), (0.5,))

# Micro-batches of a step, largest norm of the gradient, and how the model is spread.
CASES = [(1, None), (2, None), (2, 0.01)]
PARALLEL = ("ddp", "fsdp")


def in_process(rank: int, results) -> None:
    with join_processes("cpu") as processes:
        for accum_iter, clip_grad in CASES:
            for parallel in PARALLEL:
                loss, gradients = gradients_of_a_step(processes, accum_iter, clip_grad, parallel)
                results[accum_iter, clip_grad, parallel, rank] = loss, [gradient.numpy() for gradient in gradients]


@pytest.fixture(scope="module", params=[2, 4])
def over_processes(request: pytest.FixtureRequest) -> dict:
    """Loss and gradients of a step, by case and by process."""
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(request.param, in_process, shared)
        found = dict(shared)
    assert len(found) == len(CASES) * len(PARALLEL) * request.param
    return found


def test_parts_differ_in_weight():
    weights = [batch_of(first, first + 2).masks.value.weights.sum().item() for first in (0, 2, 4, 6)]
    assert max(weights) > 1.2 * min(weights), "a mean of means would pass"


@pytest.mark.parametrize("accum_iter", [2, 8])
def test_micro_batches_give_the_gradients_of_the_whole_batch(accum_iter: int):
    expected_loss, expected = gradients_of_a_step(ALONE, 1)
    loss, gradients = gradients_of_a_step(ALONE, accum_iter)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-12


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(("accum_iter", "clip_grad"), CASES)
def test_processes_give_the_gradients_of_the_global_batch(
    over_processes: dict, accum_iter: int, clip_grad: float | None, parallel: str
):
    expected_loss, expected = gradients_of_a_step(ALONE, 1, clip_grad)
    results = [result for key, result in over_processes.items() if key[:3] == (accum_iter, clip_grad, parallel)]
    assert len(results) >= 2
    for loss, gradients in results:
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for ours, theirs in zip(map(torch.from_numpy, gradients), expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-12


def test_the_gradient_is_clipped_to_the_norm():
    _, expected = gradients_of_a_step(ALONE, 2)
    _, clipped = gradients_of_a_step(ALONE, 2, clip_grad=0.01)
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert norm > 0.02
    for ours, theirs in zip(clipped, expected):
        torch.testing.assert_close(ours, theirs * (0.01 / norm), rtol=1e-4, atol=1e-9)


class Paced(Step):
    """Changes nothing, and takes a second of a clock's time."""

    now = 0.0

    def __call__(self, index: int, micro_batches: list[TrainBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        self.now += 1
        return torch.ones(()), torch.ones(())

    def pass_time(self, seconds: float) -> Callable[..., None]:
        """A function, of any arguments, that takes so long."""

        def work(*_: object) -> None:
            self.now += seconds

        return work


def test_what_is_no_training_counts_in_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Checkpoints, evaluations, and what is written of damage and skipped steps, in or at the end of a window."""
    model = torch.nn.Linear(1, 1)
    step = Paced(model, torch.optim.SGD(model.parameters()), MethodObjective(STATISTICS), ALONE, lambda _: 0.1)
    monkeypatch.setattr(loop, "Stopwatch", lambda: Stopwatch(lambda: step.now))
    loop.Loop(
        step=step,
        batches=itertools.repeat(batch_of(0, 8)),
        total_steps=12,
        steps_per_epoch=3,
        accum_iter=1,
        batch_size=8,
        log_every=2,
        checkpoint_every=5,
        timetable=Timetable(600),
        save=step.pass_time(100),
        on_damaged=step.pass_time(10),
        on_skipped=step.pass_time(20),
        on_epoch_end=step.pass_time(1000),
        requests=StopRequests(ALONE),
        metrics=(metrics := MetricsLog(tmp_path, 0)),
    ).run(0)
    metrics.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 6, 8, 10, 12]
    assert {row["images_per_second"] for row in rows} == {8.0}
    # A second for each step to come.
    expected = [f"ETA 0:00:{12 - row['step']:02}" for row in rows]
    assert [line[-len("ETA 0:00:00") :] for line in capsys.readouterr().err.splitlines()] == expected
