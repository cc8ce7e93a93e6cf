"""The training loop: accumulate, average over the global batch, step, log, checkpoint.

The loss of a step is one weighted mean over the whole global batch: all processes and all micro-batches. Their
weights (for Efficient MAE, the sum of the predicted patches' d ** -gamma) differ from part to part, so no mean of
means would do; every part contributes its weighted sum, divided by the weight of the whole.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from efficient_mae.data.batches.generators import seeded_generators, torch_seeded
from efficient_mae.data.batches.order import sample_rng
from efficient_mae.engine.faults.nonfinite import SkippedStep, Window
from efficient_mae.engine.faults.preemption import StopRequests
from efficient_mae.engine.logging import MetricsLog, ProgressDisplay, Stopwatch
from efficient_mae.engine.machine.distributed import Processes, autocast
from efficient_mae.engine.machine.parallel import whole_tensor
from efficient_mae.engine.optim import keep, set_learning_rate, step_unless
from efficient_mae.engine.prefetch import DevicePrefetcher
from efficient_mae.engine.timetable import Timetable
from efficient_mae.errors import Stopped


@runtime_checkable
class Objective(Protocol):
    """What a task minimises: a weighted mean over the samples (or patches) of the global batch."""

    def weight(self, batch: Any) -> Tensor:
        """Sum of the weights in this batch, before any forward pass; a scalar."""
        ...

    def weighted_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of weight times error over this batch; a differentiable scalar."""
        ...


class TaskObjective(Objective, Protocol):
    """An objective that can also say what each sample adds."""

    def sample_sums(self, model: nn.Module, batch: Any) -> Tensor:
        """Each sample's part of :meth:`weighted_sum`, (B,); differentiable if the model takes all samples at once."""
        ...


@dataclass
class Step:
    """One optimiser step over a global batch.

    Attributes:
        model: as wrapped for the processes.
        objective: what is minimised.
        learning_rate: of the step with a given index.
        clip_grad: largest norm of the gradient; None leaves it as it is.
        seed: of what is random within a step: drop path, mixup.
        after: called when the step is done; after one that was skipped too, with the weights as they were.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    processes: Processes
    learning_rate: Callable[[int], float]
    precision: str = "fp32"
    clip_grad: float | None = None
    seed: int = 0
    after: Callable[[], None] = lambda: None

    def __call__(self, index: int, micro_batches: list[Any]) -> tuple[Tensor, Tensor]:
        """Do the step with this index, or skip it: if the loss or the gradient isn't finite, all stays as it was.

        Returns:
            This process' part of the loss (the loss is the sum over the processes; nan, with a gradient of 0, where
            the global batch weighs nothing), and the norm of the gradient before it was clipped; the step was
            skipped if that isn't finite. Both stay on the device; nothing here waits for it.
        """
        put_back = keep(self.model.buffers())
        loss, norm = self.backward(index, micro_batches)
        skip = norm.isfinite().logical_not()
        put_back(skip)
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad, norm)
        set_learning_rate(self.optimizer, self.learning_rate(index))
        step_unless(skip, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.after()
        return loss, norm

    def backward(self, index: int, micro_batches: list[Any]) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the step with this index on the parameters; return what the step returns."""
        with step_generators(self.seed, index, self.processes.rank, self.processes.device):
            loss = self._backward(micro_batches)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return loss, whole_tensor(nn.utils.get_total_norm(gradients))

    def _backward(self, micro_batches: list[Any]) -> Tensor:
        """Leave the global batch's gradient on the parameters; return this process' part of the loss."""
        processes = self.processes
        total = torch.stack([self.objective.weight(batch) for batch in micro_batches]).sum()
        total = processes.sum(total.to(processes.device, non_blocking=True))
        nothing = total == 0
        divisor = total + nothing
        loss = torch.zeros((), device=processes.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with self._gradients_averaged_after(last), autocast(self.precision, processes.device):
                part = self.objective.weighted_sum(self.model, batch) / divisor
            value = part.detach()
            # Averaging the gradients over the processes divides by their number; the total counts them all. Times
            # zero, a loss that isn't finite makes the gradient NaN: so all processes hear of it with no more said.
            with self._gradients_averaged_after(last):
                part.backward(processes.world_size + 0 * value)
            loss += value
        return loss.masked_fill(nothing, math.nan)  # no mean of nothing is logged

    def _gradients_averaged_after(self, last: bool):
        """Processes exchange gradients once a step, after the last micro-batch."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()


@contextmanager
def step_generators(seed: int, index: int, rank: int, device: torch.device | None = None) -> Iterator[None]:
    """Within, every global generator starts from (seed, step, rank), so that a resumed run draws the same numbers.

    Python's, numpy's and PyTorch's, on the host and on the device, are as before afterwards; nobody waits for a GPU.
    """
    rng = sample_rng(seed, index, rank, "step")
    with seeded_generators(rng), torch_seeded(int(rng.integers(2**63)), device):
        yield


@dataclass
class Loop:
    """When what happens in a run.

    Attributes:
        step: does one optimiser step.
        batches: an endless stream of this process' micro-batches; each has `images` and `damaged`.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        accum_iter: micro-batches of a step.
        batch_size: images of a global batch.
        log_every: steps between two logged ones; so many are logged at first, each of them.
        checkpoint_every: steps between two checkpoints.
        timetable: says which further ones are due.
        save: writes a checkpoint, given the number of steps done.
        on_damaged: told at every logged step of the unreadable images that were met since the last.
        on_skipped: told at every logged step of the steps that were skipped since the last.
        on_epoch_end: told how many epochs are done, at the end a part of one too; before the checkpoint of the same
            step, so that a run which is killed in it calls it again.
        requests: asked before each step whether the run is to stop after it, with a checkpoint, and whether all
            processes follow the timetable. All get the same answer.
        metrics: where figures are logged; None for all but the main process.
    """

    step: Step
    batches: Iterator[Any]
    total_steps: int
    steps_per_epoch: int
    accum_iter: int
    batch_size: int
    log_every: int
    checkpoint_every: int
    timetable: Timetable
    save: Callable[[int], None]
    on_damaged: Callable[[list[tuple[str, str]]], None]
    on_skipped: Callable[[list[SkippedStep]], None]
    on_epoch_end: Callable[[float], None]
    requests: StopRequests
    metrics: MetricsLog | None
    _damaged: list[tuple[str, str]] = field(default_factory=list)

    def run(self, first_step: int) -> None:
        """Train from a step to the end.

        Raises:
            Stopped: asked to stop, after the checkpoint of the last step that was done.
        """
        watch = Stopwatch()
        display = ProgressDisplay(self.total_steps, first_step, show=self.metrics is not None, clock=watch.time)
        device = self.step.processes.device
        window = Window(self.step.processes)
        prefetcher = DevicePrefetcher(self.batches, device, self.accum_iter)
        try:
            for index in range(first_step, self.total_steps):
                done = index + 1
                ends_epoch = (done + self.requests.lag) % self.steps_per_epoch == 0
                due = self.requests.agreed(self.timetable.row_is_due(), self.timetable.checkpoint_is_due(ends_epoch))
                stop = due.stop
                saves = due.checkpoint or done % self.checkpoint_every == 0 or done == self.total_steps or stop > 0
                # A checkpoint ends a window, so that no half window need be carried over to a resumed run.
                logs = saves or due.row or done % self.log_every == 0 or done <= self.log_every
                micro_batches = self._taken(watch.wait_for(prefetcher.take))
                window.add(index, *self.step(index, micro_batches), micro_batches)
                if not logs:
                    # Not past a row or a checkpoint: a batch that can't be read must not cost the steps before it.
                    watch.wait_for(prefetcher.look_ahead)
                watch.count(self.batch_size)
                if logs:
                    figures, skipped = window.read()
                    row = self._row(done, figures, watch)
                    display.report(row)
                    with watch.stopped():
                        self._write(row, skipped)
                    self.timetable.wrote_row()
                display.advance(done)
                if done % self.steps_per_epoch == 0 or done == self.total_steps:
                    if device.type == "cuda" and not logs:
                        torch.cuda.synchronize(device)  # what it still computes is training, what follows is none
                    with watch.stopped():
                        self.on_epoch_end(done / self.steps_per_epoch)
                if saves:
                    with watch.stopped():
                        self.save(done)
                    self.timetable.wrote_checkpoint()
                if stop and done < self.total_steps:
                    raise Stopped(stop, done)
        finally:
            display.close()

    def _write(self, row: dict[str, float], skipped: list[SkippedStep]) -> None:
        if self.metrics:
            self.metrics.write(row)
        self.on_damaged(self._damaged)
        self._damaged = []
        self.on_skipped(skipped)

    def _taken(self, micro_batches: list[Any]) -> list[Any]:
        """Note the damage of the batches that a step is given; one that was decoded on its way knows of more."""
        for batch in micro_batches:
            self._damaged += batch.damaged
        return micro_batches

    def _row(self, done: int, figures: dict[str, float], watch: Stopwatch) -> dict[str, float]:
        return {
            "step": done,
            "epoch": round(done / self.steps_per_epoch, 6),
            **figures,
            "lr": self.step.learning_rate(done - 1),
            **watch.read(),
        }
