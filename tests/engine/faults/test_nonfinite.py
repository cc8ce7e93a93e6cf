"""A step that isn't finite is skipped: what is left is what a loop leaves that never saw it."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.optim.lars import Lars
from torch import Tensor, nn

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.faults.nonfinite import Window
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import ALONE, Processes, join_processes
from efficient_mae.engine.machine.parallel import local_tensor, parallelize
from efficient_mae.engine.optim import build_adamw, set_learning_rate
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.mae import MaskPlanner, MaskSettings
from efficient_mae.tasks.pretrain import MethodObjective
from tests.operators import Operators
from tests.processes import spawn

STEPS, BAD = 4, (0, 2)  # the first step, in which the optimiser's state is made, and a later one
SIZE = 4  # images of a process' micro-batch


class Poisoned(MethodObjective):
    """The real objective, but for what it does to the image of index -1."""

    def __init__(self, kind: str):
        super().__init__(ImageStatistics((0.5,), (0.5,)))
        object.__setattr__(self, "kind", kind)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        value = super().weighted_sum(model, batch)
        if -1 not in batch.indices:
            return value
        if self.kind == "loss alone":  # infinite, with a gradient that isn't
            return value + float("inf")
        if self.kind == "gradient alone":
            value.register_hook(lambda gradient: gradient * float("nan"))
            return value
        return value * float("nan")


KINDS = ("both", "loss alone", "gradient alone")


def batch_of(step: int, part: int, bad: bool) -> TrainBatch:
    generator = torch.Generator().manual_seed(100 * step + part)
    images = torch.randint(0, 256, (SIZE, 1, 16, 16), dtype=torch.uint8, generator=generator)
    noise = torch.rand(SIZE, 16, generator=generator)
    masks = MaskPlanner((4, 4), 4, MaskSettings(mask_ratio=0.75))(noise)
    indices = torch.full((SIZE,), -1) if bad else torch.arange(SIZE)
    return TrainBatch(images, indices, None, [], Flat.of(masks))


def prepared(processes: Processes, parallel: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = emae.create_model(
        "mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32
    )
    trained = parallelize(model, processes, parallel=parallel)
    return trained, build_adamw(model, 0.05)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return [local_tensor(value.detach()).clone() for value in (*model.state_dict().values(), *kept)]


def rate_of(step: int) -> float:
    return 0.01 * (step + 1)


def by_the_engine(processes: Processes, parallel: str, kind: str) -> tuple[list[Tensor], list[bool], Window]:
    """What is left, and which steps were skipped. The last process' last micro-batch is bad."""
    model, optimizer = prepared(processes, parallel)
    step = Step(model, optimizer, Poisoned(kind), processes, rate_of, clip_grad=1.0)
    window, skipped = Window(processes), []
    for index in range(STEPS):
        bad = index in BAD and processes.rank == processes.world_size - 1
        batches = [batch_of(index, 2 * processes.rank + part, bad and part == 1) for part in range(2)]
        loss, norm = step(index, batches)
        window.add(index, loss, norm, batches)
        skipped.append(not bool(norm.isfinite()))
    return state_of(model, optimizer), skipped, window


def by_hand(processes: Processes, parallel: str) -> tuple[list[Tensor], list[float]]:
    """What is left, and the losses of the steps that are taken, in plain PyTorch."""
    model, optimizer = prepared(processes, parallel)
    objective, losses = Poisoned("none"), []
    for index in range(STEPS):
        if index in BAD:
            continue
        batches = [batch_of(index, 2 * processes.rank + part, False) for part in range(2)]
        total = torch.stack([objective.weight(batch) for batch in batches]).sum()
        if processes.world_size > 1:
            dist.all_reduce(total)
        loss = torch.zeros(())
        for part, batch in enumerate(batches):
            if parallel == "fsdp" and processes.world_size > 1:
                model.set_requires_gradient_sync(part == 1)
            elif processes.world_size > 1:
                model.require_backward_grad_sync = part == 1
            share = objective.weighted_sum(model, batch) / total
            (share * processes.world_size).backward()
            loss += share.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizer, rate_of(index))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if processes.world_size > 1:
            dist.all_reduce(loss)
        losses.append(loss.item())
    return state_of(model, optimizer), losses


def check(processes: Processes, parallel: str) -> None:
    expected, losses = by_hand(processes, parallel)
    assert len(losses) == STEPS - len(BAD)
    for kind in KINDS:
        found, skipped, window = by_the_engine(processes, parallel, kind)
        assert skipped == [index in BAD for index in range(STEPS)], kind
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            assert torch.equal(ours, theirs), kind
        figures, steps = window.read()
        assert figures["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert figures["skipped_steps"] == len(BAD) and [step.index for step in steps] == list(BAD)
        bad_rank = processes.rank == processes.world_size - 1
        for step in steps:
            own = torch.tensor(step.own_loss).isfinite().item()
            assert own == (kind == "gradient alone" or not bad_rank)
            assert step.images[1] == ([-1] * SIZE if bad_rank else list(range(SIZE)))


def test_alone():
    check(ALONE, "ddp")


def in_process(rank: int, done) -> None:
    with join_processes("cpu") as processes:
        for parallel in ("ddp", "fsdp"):
            check(processes, parallel)
            done[rank, parallel] = True


def test_all_processes_skip_what_one_of_them_cannot_take():
    with mp.Manager() as manager:
        done = manager.dict()
        spawn(2, in_process, done)
        assert len(done) == 4


class Squares:
    """Of the outputs; a bad batch is one of infinite inputs."""

    def weight(self, batch: Tensor) -> Tensor:
        return torch.tensor(float(len(batch)))

    def weighted_sum(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().sum()


@pytest.mark.parametrize("bad", [(0,), (2,), (1, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: Lars([{"params": parameters, "always_adapt": True}], lr=0.0, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
    ],
    ids=["lars", "momentum", "sgd", "adamw"],
)
def test_any_optimizer_and_running_statistics(make, bad: tuple[int, ...]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    plain = copy.deepcopy(model)
    optimizer, other = make(model.parameters()), make(plain.parameters())
    step = Step(model, optimizer, Squares(), ALONE, rate_of)
    for index in range(STEPS):
        batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(index))
        if index not in bad:
            (Squares().weighted_sum(plain, batch) / 5).backward()
            set_learning_rate(other, rate_of(index))
            other.step()
            other.zero_grad()
        else:
            batch[0, 0] = float("inf")
        step(index, [batch])
    found, expected = state_of(model, optimizer), state_of(plain, other)
    assert len(found) == len(expected) > 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected))


@pytest.mark.parametrize("make", [partial(build_adamw, weight_decay=0.1), lambda m: Lars(m.parameters())])
def test_the_host_asks_for_no_value(make):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    step = Step(model, make(model), Squares(), ALONE, rate_of, clip_grad=1.0)
    with Operators() as asked:
        for index in range(2):
            step(index, [torch.full((4, 3), float("inf") if index else 1.0)])
    telling = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}
    assert len(asked.names) > 50
    assert not telling & set(asked.names)
    with Operators() as asked:
        bool(torch.ones(()))
    assert telling & set(asked.names)
