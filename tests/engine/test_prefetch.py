"""Micro-batches come in their order, and on a CPU none before its step."""

import pytest
import torch

from efficient_mae.data import TrainBatch
from efficient_mae.engine.prefetch import DevicePrefetcher


def numbered(drawn: list[int], total: int = 6):
    for number in range(total):
        drawn.append(number)
        images = torch.full((2, 1, 4, 4), number, dtype=torch.uint8)
        yield TrainBatch(images, torch.arange(2), None, [(str(number), "damaged")])


def test_a_cpu_draws_nothing_ahead(monkeypatch: pytest.MonkeyPatch):
    # On a machine with a GPU it would open a context there.
    monkeypatch.setattr(torch.cuda, "stream", lambda _: pytest.fail("CUDA was asked for a stream"))
    drawn: list[int] = []
    prefetcher = DevicePrefetcher(numbered(drawn), torch.device("cpu"), accum_iter=2)
    for step in range(3):
        batches = prefetcher.take()
        prefetcher.look_ahead()
        assert drawn == list(range(2 * step + 2))
        assert [int(batch.images[0, 0, 0, 0]) for batch in batches] == drawn[-2:]
        assert [batch.damaged[0][0] for batch in batches] == [str(number) for number in drawn[-2:]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_one_step_ahead():
    drawn: list[int] = []
    prefetcher = DevicePrefetcher(numbered(drawn), torch.device("cuda"), accum_iter=2)
    for step in range(2):
        batches = prefetcher.take()
        prefetcher.look_ahead()
        assert len(drawn) == 2 * step + 4
        assert [int(batch.images.float().mean()) for batch in batches] == [2 * step, 2 * step + 1]
