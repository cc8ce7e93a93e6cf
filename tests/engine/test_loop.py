"""The step over a global batch: the same gradient however the batch is cut."""

from functools import partial

import pytest
import torch
import torch.multiprocessing as mp

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.distributed import ALONE, Processes, join_processes
from efficient_mae.engine.loop import Step
from efficient_mae.engine.optim import build_adamw, learning_rate
from efficient_mae.engine.parallel import parallelize, whole_tensor
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.masking import plan_masks
from efficient_mae.tasks.pretrain import Reconstruction
from tests.processes import spawn


def batch_of(first: int, last: int) -> TrainBatch:
    """Images and masks first ... last of a fixed global batch of 8, of very unequal difficulty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 24, 24), dtype=torch.uint8, generator=generator)
    noise = torch.rand(8, 36, generator=generator)
    noise[:4, :5] -= 2  # the first four images see one corner only
    masks = plan_masks(noise[first:last], grid_size=(6, 6), patch_size=4, mask_ratio=0.85, beta=20.0)
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
    objective = Reconstruction(ImageStatistics((0.5,), (0.5,)))
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
