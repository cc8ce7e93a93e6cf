"""A step that was skipped, done again: which samples, which module and which gradients are not finite.

Order, crops, masks and what is drawn within a step follow from the seed, so a run's last checkpoint before the step
leads to it again: to the bit, by as many processes on the same machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.engine.faults.nonfinite import plain
from efficient_mae.engine.loop import Step, step_generators
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.engine.machine.parallel import whole_tensor
from efficient_mae.engine.prefetch import DevicePrefetcher
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.checkpoint import find_checkpoints, parameters_by_name, step_of
from efficient_mae.methods.base import BACKBONE


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What a log holds of a step: numbers, or what is not finite as text.

    Attributes:
        loss: of the global batch.
        grad_norm: norm of its gradient.
    """

    loss: float | str
    grad_norm: float | str


@dataclass(frozen=True, kw_only=True)
class BadModule:
    """A module whose output isn't finite.

    Attributes:
        name: in the model.
        kind: its class.
        input_is_finite: all of it.
        rank: process that came by it.
    """

    name: str
    kind: str
    input_is_finite: bool
    rank: int


@dataclass(frozen=True, kw_only=True)
class ReplayedSample:
    """A sample of the step.

    Attributes:
        rank: process that trained on it.
        epoch: that it is of.
        index: number in the source.
        name: of the image that was read.
        loss: its part of the step's.
    """

    rank: int
    epoch: int
    index: int
    name: str
    loss: float | str


@dataclass(frozen=True, kw_only=True)
class ReplayResult(Result):
    """A step that was done again.

    Attributes:
        run: directory.
        step: its number, from 1.
        reproduced: loss or gradient are not finite this time either.
        recorded: the figures of the first time.
        checkpoint: steps done at the one that was loaded; 0 for none.
        loss, grad_norm: the figures of this time.
        module: the first whose output isn't finite; None for no module's.
        weights: names of parameters that aren't finite before the step.
        gradients: names of parameters whose gradient isn't.
        samples: of all processes.
    """

    run: str
    step: int
    reproduced: bool
    recorded: StepFigures
    checkpoint: int
    loss: float | str
    grad_norm: float | str
    module: BadModule | None
    weights: list[str]
    gradients: list[str]
    samples: list[ReplayedSample]


def replay_step(run: Run, number: int, recorded: StepFigures) -> ReplayResult:
    """Do a step again, from the last checkpoint before it, or from the beginning; nothing is written.

    Args:
        run: newly made.
        number: of the step, as the log counts them, from 1.
        recorded: of the first time.

    Raises:
        InputError: the data has changed.
    """
    processes, index = run.processes, number - 1
    step = run.prepare()
    earlier = [path for path in find_checkpoints(run.out / "checkpoints") if step_of(path) <= index]
    first = 0
    if earlier:
        first = run.restore(earlier[-1])
    else:
        run.begin()
    if processes.is_main and first < index:
        say(f"doing steps {first + 1} to {index} of {run.out} again")
    prefetcher = DevicePrefetcher(run.batches(first), processes.device, run.config.accum_iter)
    for before in range(first, index):
        step(before, prefetcher.take())
    micro_batches = prefetcher.take()
    weights = [name for name, value in parameters_by_name(run.model).items() if not _is_finite(value)]
    loss, norm = step.backward(index, micro_batches)
    loss = processes.sum(loss.clone())
    step.optimizer.zero_grad(set_to_none=True)
    module, shares = _look_into(run, step, index, micro_batches)
    named = parameters_by_name(run.model).items()
    gradients = [name for name, p in named if p.grad is not None and not _is_finite(p.grad)]
    pairs = islice(run.pairs(index), run.config.accum_iter)
    samples = [
        ReplayedSample(
            rank=processes.rank, epoch=epoch, index=index, name=run.source.sample_name(image), loss=plain(share)
        )
        for part, batch, micro_shares in zip(pairs, micro_batches, shares, strict=True)
        for (epoch, index), image, share in zip(part, batch.indices.tolist(), micro_shares, strict=True)
    ]
    modules, names, parts = zip(*processes.gather((module, gradients, samples)))
    grad_norm = plain(norm.item())
    return ReplayResult(
        run=run.config.out,
        step=number,
        reproduced=isinstance(grad_norm, str),
        recorded=recorded,
        checkpoint=first,
        loss=plain(loss.item()),
        grad_norm=grad_norm,
        module=next((module for module in modules if module is not None), None),
        weights=weights,
        gradients=list(dict.fromkeys(chain.from_iterable(names))),
        samples=list(chain.from_iterable(parts)),
    )


def _look_into(
    run: Run, step: Step, index: int, micro_batches: list[Any]
) -> tuple[BadModule | None, list[list[float]]]:
    """Leave each process' own gradient on the parameters; return the first module and the samples' losses.

    Not compiled, so that every module is come by.
    """
    processes, objective = run.processes, run.objective()
    total = processes.sum(
        torch.stack([objective.weight(batch).to(processes.device) for batch in micro_batches]).sum()
    )
    shares: list[list[float]] = []
    with (
        torch.compiler.set_stance("force_eager"),
        step_generators(step.seed, index, processes.rank, processes.device),
        _first_non_finite(run.model, processes.rank) as found,
    ):
        for batch in micro_batches:
            with autocast(step.precision, processes.device):
                parts = objective.sample_sums(run.model, batch) / total
                # Of a model that takes a micro-batch in parts, each sample's share has no gradient of its own.
                whole = parts.sum() if parts.requires_grad else objective.weighted_sum(run.model, batch) / total
            whole.backward()
            shares.append(parts.tolist())
    return next(iter(found), None), shares


@contextmanager
def _first_non_finite(model: nn.Module, rank: int) -> Iterator[list[BadModule]]:
    """Within, the first module whose output isn't finite puts itself into the list."""
    found: list[BadModule] = []

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (found or _is_finite(output)):
            finite = all(map(_is_finite, inputs))
            found.append(BadModule(name=name, kind=type(module).__name__, input_is_finite=finite, rank=rank))

    def hook(name: str):
        return lambda module, inputs, output: look(name.removeprefix(BACKBONE), module, inputs, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    """Of a tensor, or of those in a tuple; of anything else, True."""
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, Tensor) or bool(whole_tensor(value.detach()).isfinite().all())
