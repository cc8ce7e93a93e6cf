"""The step over a global batch: the same gradient however the batch is cut."""

import os
import socket
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.distributed import Processes, join_processes
from efficient_mae.engine.loop import Step
from efficient_mae.engine.optim import build_adamw, learning_rate
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
    processes: Processes, accum_iter: int, clip_grad: float | None = None
) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32, beta=20.0
    ).double()
    seen: list[torch.Tensor] = []
    optimizer = build_adamw(model, 0.05)
    optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in model.parameters()))
    rate = partial(learning_rate, peak=1e-3, warmup_steps=0, total_steps=10)
    objective = Reconstruction(ImageStatistics((0.5,), (0.5,)))
    step = Step(processes.wrap(_Double(model)), optimizer, objective, processes, rate, clip_grad=clip_grad)
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


def in_process(rank: int, world_size: int, accum_iter: int, port: int, results) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with join_processes("cpu") as processes:
        loss, gradients = gradients_of_a_step(processes, accum_iter)
        results[rank] = (loss, [gradient.numpy() for gradient in gradients])


def test_parts_differ_in_weight():
    weights = [batch_of(first, first + 2).masks.weights.sum().item() for first in (0, 2, 4, 6)]
    assert max(weights) > 1.2 * min(weights), "a mean of means would pass"


@pytest.mark.parametrize(("world_size", "accum_iter"), [(1, 2), (1, 8), (2, 1), (2, 2), (4, 2)])
def test_gradients_are_those_of_the_global_batch(world_size: int, accum_iter: int):
    alone = Processes(0, 1, torch.device("cpu"))
    expected_loss, expected = gradients_of_a_step(alone, 1)
    if world_size == 1:
        results = {0: gradients_of_a_step(alone, accum_iter)}
    else:
        with mp.Manager() as manager:
            shared = manager.dict()
            mp.spawn(in_process, (world_size, accum_iter, free_port(), shared), nprocs=world_size)
            results = {rank: (loss, map(torch.from_numpy, grads)) for rank, (loss, grads) in dict(shared).items()}
    assert len(results) == world_size
    for loss, gradients in results.values():
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-12


def test_the_gradient_is_clipped_to_the_norm():
    alone = Processes(0, 1, torch.device("cpu"))
    _, expected = gradients_of_a_step(alone, 2)
    _, clipped = gradients_of_a_step(alone, 2, clip_grad=0.01)
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert norm > 0.02
    for ours, theirs in zip(clipped, expected):
        torch.testing.assert_close(ours, theirs * (0.01 / norm), rtol=1e-4, atol=1e-9)
