"""What is random within a step depends on (seed, step, rank) alone, and leaves the program's generators be."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from efficient_mae.data import TrainBatch
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.loop import Step, step_generators
from efficient_mae.engine.machine.distributed import Processes


class Draws:
    """An objective that draws from every global generator and keeps what it got."""

    def __init__(self):
        self.drawn: list[tuple] = []

    def weight(self, batch: TrainBatch) -> torch.Tensor:
        return torch.tensor(1.0)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> torch.Tensor:
        self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
        return model(torch.ones(1, 2)).sum()


def draws(steps: list[int], seed: int = 0, rank: int = 0) -> list[tuple]:
    model, objective = nn.Linear(2, 1), Draws()
    optimizer = torch.optim.SGD(model.parameters())
    processes = Processes(rank, 1, torch.device("cpu"))
    step = Step(model, optimizer, objective, processes, lambda _: 0.1, seed=seed)
    empty = TrainBatch(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), None, [])
    for index in steps:
        step(index, [empty, empty])
    return objective.drawn


def test_the_same_step_draws_the_same():
    first = draws([0, 1, 2, 3])
    torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
    assert draws([2, 3]) == first[4:]
    assert len({*first}) == 8 and not {*first} & {*draws([0, 1], seed=1)} and not {*first} & {*draws([0], rank=1)}


def test_no_trace_is_left():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with step_generators(seed=0, index=3, rank=1):
        inside = random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert inside not in draws([3])


def test_seeded_as_pytorch_seeds_and_put_back():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = torch.rand(3)
    before = torch.get_rng_state()
    with torch_seeded(5):
        assert torch.equal(torch.rand(3), theirs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_seeded_on_a_gpu_and_put_back():
    device = torch.device("cuda", 0)
    torch.manual_seed(5)
    theirs = torch.rand(3, device=device)
    torch.manual_seed(7)
    expected = torch.rand(3, device=device)
    torch.manual_seed(7)
    with torch_seeded(5, device):
        assert torch.equal(torch.rand(3, device=device), theirs)
    with torch_seeded(5):  # the host alone
        torch.rand(3)
    with step_generators(seed=0, index=0, rank=0, device=device):
        drawn = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected) and not torch.equal(drawn, expected)
