"""Steps whose loss or gradient is not finite: the device skips them, and the host hears of it at logged steps.

`skipped.jsonl` has a line for each of them: the samples that it saw and what their crops and masks were drawn from,
so that `emae replay` can do the step again.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.console import say
from efficient_mae.data import Source
from efficient_mae.engine.faults.rollback import Rollbacks, last_good
from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.machine.parallel import local_tensor
from efficient_mae.engine.settings import RunConfig
from efficient_mae.engine.storage.checkpoint import find_checkpoints, parameters_by_name, step_of
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.errors import DivergedError

SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class SkippedStep:
    """A step that was not taken.

    Attributes:
        index: of the step, from 0.
        loss: over all processes.
        own_loss: this process' part of it.
        grad_norm: over all processes.
        images: numbers in the data set of what this process saw, by micro-batch.
    """

    index: int
    loss: float
    own_loss: float
    grad_norm: float
    images: list[list[int]]


class Window:
    """Losses and gradients of the steps since the last row of the log, left on the device until the row is written.

    Args:
        processes: that train together.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._steps: list[tuple[int, Tensor, Tensor, list[Tensor]]] = []

    def add(self, index: int, loss: Tensor, norm: Tensor, micro_batches: list[Any]) -> None:
        """Note what the step of this index returned, and what it saw."""
        self._steps.append((index, loss, norm, [batch.indices for batch in micro_batches]))

    def read(self) -> tuple[dict[str, float], list[SkippedStep]]:
        """Wait for the device, and begin a new window; every process calls this at the same steps.

        Returns:
            Figures for the log, `loss`, the mean over the steps that were taken and weighed anything, `grad_norm`, of
            the last that was taken, and `skipped_steps`, if any; and the steps that were skipped.
        """
        indices, losses, norms, images = zip(*self._steps)
        self._steps = []
        parts = torch.stack(losses)
        whole = self._processes.sum(parts.clone())
        rows = list(zip(whole.tolist(), parts.tolist(), torch.stack(norms).tolist()))
        taken = [(loss, norm) for loss, _, norm in rows if math.isfinite(norm)]
        weighed = [loss for loss, _ in taken if not math.isnan(loss)]
        figures: dict[str, float] = {}
        if weighed:
            figures["loss"] = math.fsum(weighed) / len(weighed)
        if taken:
            figures["grad_norm"] = taken[-1][1]
        skipped = [
            SkippedStep(index, *row, [numbers.tolist() for numbers in seen])
            for index, row, seen in zip(indices, rows, images)
            if not math.isfinite(row[2])
        ]
        if skipped:
            figures["skipped_steps"] = len(skipped)
        return figures, skipped


class SkipLog:
    """The steps that were skipped, over all processes; kept in `skipped.jsonl`.

    Args:
        first_step: steps already done; what a run that was killed had written beyond them is dropped.
        config: of the run; says with how many steps in a row it stops.
        source: of the images.
        pairs: this process' micro-batches, as (epoch, index) pairs, from a step on.
        rollbacks: times that the run went back.
        processes: that share the log.
    """

    def __init__(
        self,
        first_step: int,
        config: RunConfig,
        source: Source,
        pairs: Callable[[int], Iterable[list[tuple[int, int]]]],
        rollbacks: Rollbacks,
        processes: Processes,
    ):
        self._folder, self._most = Path(config.out), config.max_skipped_steps
        self._file = self._folder / SKIPPED
        self._source, self._pairs, self._processes = source, pairs, processes
        self._rollbacks = rollbacks
        self._settings = {
            "seed": config.seed,
            "accum_iter": config.accum_iter,
            "world_size": processes.world_size,
            "rollbacks": len(rollbacks.made),
        }
        held = read_metrics(self._file)
        self.rows = [row for row in held if row["step"] <= first_step or not rollbacks.holds(row)]
        processes.barrier()  # nobody writes before all have read
        if processes.is_main and self._file.exists():
            replace_file(self._file, "".join(f"{json.dumps(row)}\n" for row in self.rows).encode())

    @property
    def spared(self) -> set[int]:
        """Steps of the checkpoints that must stay: what a replay of the first skipped step starts from."""
        return {row["checkpoint"] for row in self.rows[:1]}

    def add(self, skipped: list[SkippedStep]) -> None:
        """Write down steps that were skipped; every process calls this at the same steps.

        Raises:
            DivergedError: as many in a row as may be.
        """
        if not skipped:
            return
        parts = self._processes.gather(list(self._parts(skipped)))
        for number, step in enumerate(skipped):
            by_rank = [part[number] for part in parts]
            row = {
                "step": step.index + 1,
                "loss": plain(step.loss),
                "grad_norm": plain(step.grad_norm),
                "ranks": [rank for rank, (own_loss, _) in enumerate(by_rank) if not math.isfinite(own_loss)],
                **self._settings,
                "checkpoint": last_good(self._folder, step.index + 1),
                "samples": [{"rank": rank, **sample} for rank, (_, seen) in enumerate(by_rank) for sample in seen],
            }
            self.rows.append(row)
            if self._processes.is_main:
                with self._file.open("a") as file:
                    file.write(f"{json.dumps(row)}\n")
                say(f"step {row['step']} skipped: loss {row['loss']}, norm of the gradient {row['grad_norm']}")
            first = self.first_in_a_row(row["step"])
            if (count := row["step"] - first + 1) >= self._most:
                raise DivergedError(
                    f"{count} steps in a row, from {first} on, had a loss or a gradient that is not finite and were "
                    f"skipped; {name_last_good(self._folder, first)}; to see where it comes from: "
                    f"emae replay --run {self._folder} --step {first}",
                    first,
                    row["step"],
                )

    def first_in_a_row(self, step: int) -> int:
        """The first of the skipped steps that lead up to this one without a gap; itself if it wasn't skipped."""
        skipped = {row["step"] for row in self.rows if self._rollbacks.holds(row)}
        while step - 1 in skipped:
            step -= 1
        return step

    def check_weights(
        self, steps_done: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        """Before a checkpoint is written; every process calls this.

        Raises:
            DivergedError: something in the modules, or kept by the optimiser, isn't finite.
        """
        bad = find_non_finite(modules, optimizer, self._processes)
        if bad is not None:
            first = self.first_in_a_row(steps_done)
            raise DivergedError(
                f"after step {steps_done} {bad} is not finite, and no checkpoint was written; "
                f"{name_last_good(self._folder, first)}",
                first,
                steps_done,
            )

    def _parts(self, skipped: list[SkippedStep]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        """Of each step, this process' part of the loss and the samples that it saw."""
        first = skipped[0].index
        steps = enumerate(zip(*[iter(self._pairs(first))] * self._settings["accum_iter"]), start=first)
        for step in skipped:
            own = next(micro_batches for index, micro_batches in steps if index == step.index)
            seen = [
                # An unreadable image is replaced by another, but crop and mask stay those of its own number.
                {"epoch": epoch, "index": index, "name": self._source.sample_name(image)}
                for pairs, images in zip(own, step.images, strict=True)
                for (epoch, index), image in zip(pairs, images, strict=True)
            ]
            yield step.own_loss, seen


def plain(value: float) -> float | str:
    """A number that JSON has, or its name: nan, inf, -inf."""
    return value if math.isfinite(value) else str(value)


def name_last_good(folder: Path, bad: int) -> str:
    """Where that checkpoint lies, in words."""
    step = last_good(folder, bad)
    where = next((path for path in find_checkpoints(folder / "checkpoints") if step_of(path) == step), None)
    return f"the last good checkpoint is {where}" if where else "no good checkpoint is there"


def find_non_finite(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, processes: Processes
) -> str | None:
    """Name of something in the modules, or kept by the optimiser, that isn't finite; every process calls this."""
    names: dict[Tensor, str] = {
        parameter: name for module in modules.values() for name, parameter in parameters_by_name(module).items()
    }
    tensors = [
        (f"{name} of the {part}", value)
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    ]
    tensors += [
        (f"{kind} of {names[parameter]} in the optimizer", value)
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    ]
    held = [(name, local) for name, value in tensors if (local := local_tensor(value)).numel()]
    # One number is read from the device; only where it isn't finite, one of each.
    largest = nn.utils.get_total_norm([value for _, value in held if value.is_floating_point()], norm_type=math.inf)
    own = None if largest.isfinite() else next(name for name, value in held if not value.isfinite().all())
    return next((name for name in processes.gather(own) if name is not None), None)
