"""The step over a global batch: the same gradient however the batch is cut."""

import os
import socket
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
from efficient_mae.interop import ImageStatistics
from efficient_mae.masking import plan_masks
from efficient_mae.tasks.pretrain import Reconstruction


def batch_of(first: int, last: int) -> TrainBatch:
    """Images and masks first ... last of a fixed global batch of 8, of very unequal difficulty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 24, 24), dtype=torch.uint8, generator=generator)
    noise = torch.rand(8, 36, generator=generator)
    noise[:4, :5] -= 2  # the first four images see one corner only
    masks = plan_masks(noise[first:last], grid_size=(6, 6), patch_size=4, mask_ratio=0.85, beta=20.0)
    return TrainBatch(images[first:last], torch.arange(first, last), None, [], masks)


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_process(
    rank: int, world_size: int, accum_iter: int, clip_grad: float | None, parallel: str, port: int, results
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with join_processes("cpu") as processes:
        loss, gradients = gradients_of_a_step(processes, accum_iter, clip_grad, parallel)
        results[rank] = (loss, [gradient.numpy() for gradient in gradients])


def test_parts_differ_in_weight():
    weights = [batch_of(first, first + 2).masks.weights.sum().item() for first in (0, 2, 4, 6)]
    assert max(weights) > 1.2 * min(weights), "a mean of means would pass"


def over_processes(world_size: int, accum_iter: int, clip_grad: float | None = None, parallel: str = "ddp"):
    """Loss and gradients of a step, as each of several processes has them."""
    with mp.Manager() as manager:
        shared = manager.dict()
        arguments = (world_size, accum_iter, clip_grad, parallel, free_port(), shared)
        mp.spawn(in_process, arguments, nprocs=world_size)
        found = [(loss, [torch.from_numpy(gradient) for gradient in gradients]) for loss, gradients in shared.values()]
    assert len(found) == world_size
    return found


@pytest.mark.parametrize(
    ("world_size", "accum_iter", "parallel"),
    [(1, 2, "ddp"), (1, 8, "ddp"), (2, 1, "ddp"), (2, 2, "ddp"), (4, 2, "ddp")]
    + [(1, 2, "fsdp"), (2, 1, "fsdp"), (2, 2, "fsdp"), (4, 2, "fsdp")],
)
def test_gradients_are_those_of_the_global_batch(world_size: int, accum_iter: int, parallel: str):
    expected_loss, expected = gradients_of_a_step(ALONE, 1)
    if world_size == 1:
        results = [gradients_of_a_step(ALONE, accum_iter, parallel=parallel)]
    else:
        results = over_processes(world_size, accum_iter, parallel=parallel)
    for loss, gradients in results:
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-12


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_clip_by_the_norm_of_the_whole_gradient(parallel: str):
    _, expected = gradients_of_a_step(ALONE, 1, clip_grad=0.01)
    for _, gradients in over_processes(2, 2, 0.01, parallel):
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-12)


def test_the_gradient_is_clipped_to_the_norm():
    _, expected = gradients_of_a_step(ALONE, 2)
    _, clipped = gradients_of_a_step(ALONE, 2, clip_grad=0.01)
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert norm > 0.02
    for ours, theirs in zip(clipped, expected):
        torch.testing.assert_close(ours, theirs * (0.01 / norm), rtol=1e-4, atol=1e-9)
