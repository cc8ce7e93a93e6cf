"""`emae replay`: a step that a run skipped, done again to see where it stopped being finite."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from efficient_mae.engine.faults.nonfinite import SKIPPED
from efficient_mae.engine.faults.replay import ReplayResult, StepFigures, replay_step
from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.machine.distributed import Processes, join_processes
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.errors import InputError
from efficient_mae.ranges import Location, PositiveInt, Settings
from efficient_mae.tasks.registry import TASKS

# Names that are printed before the rest is counted.
_MOST_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Settings):
    """Settings of `emae replay`."""

    run: Location
    """run directory, of any training task; nothing in it is changed"""
    step: PositiveInt | None = None
    """which of the steps in its skipped.jsonl (null: the first)"""
    device: str | None = None
    """auto, cpu, cuda or cuda:N (null: as the run was told)"""


def replay(config: ReplayConfig) -> ReplayResult:
    """Do a skipped step of a run again, from the last checkpoint before it.

    Raises:
        InputError: not a run directory, the step is not recorded, or its data or weights are gone.
    """
    folder = Path(config.run)
    device = read_settings(folder).settings.get("device", "auto")
    row = _recorded(folder, config.step)
    with join_processes(config.device or device) as processes:
        run = _make_run(folder, row, processes)
        # As it was then: later rollbacks led elsewhere.
        del run.rollbacks.made[row["rollbacks"] :]
        found = replay_step(run, row["step"], StepFigures(loss=row["loss"], grad_norm=row["grad_norm"]))
    return replace(found, run=config.run)


def _recorded(folder: Path, step: int | None) -> dict[str, Any]:
    held = read_metrics(folder / SKIPPED)
    if not held:
        raise InputError(f"run={folder}: no step is recorded in its {SKIPPED}: none was skipped")
    if step is None:
        return held[0]
    rows = {row["step"]: row for row in held}
    if step not in rows:
        recorded = [str(number) for number in sorted(rows)]
        more = f" and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise InputError(f"step={step}: not recorded as skipped in {folder}; take {', '.join(recorded[:20])}{more}")
    return rows[step]


def _make_run(folder: Path, row: dict[str, Any], processes: Processes) -> Run:
    """The run in a directory, cut into micro-batches as it was when the step was skipped."""
    record = read_settings(folder)
    task = TASKS.get(record.task or "")
    if task is None:
        what = f"the task {record.task!r}, which is unknown here" if record.task else "no training task"
        raise InputError(f"run={folder}: its config.yaml is of {what}")
    before, now = row["world_size"], processes.world_size
    if now != before and (now > 1 or not task.replays_alone):
        alone = " one process or" if task.replays_alone else ""
        raise InputError(
            f"{now} processes: step {row['step']} was done by {before}, so start{alone} "
            f"torchrun --nproc_per_node {before} -m efficient_mae replay"
        )
    try:
        kind = task.config_of(record.settings.get("model"))
        # A CUDA graph passes by the hooks that tell the module, and needs one process on a GPU.
        plain = {"cuda_graphs": False} if "cuda_graphs" in {one.name for one in fields(kind)} else {}
        config = record.restore(kind, out=str(folder), accum_iter=row["accum_iter"] * before // now, **plain)
    except InputError as error:
        raise InputError(f"run={folder}: {error}") from None
    return task.make(config, processes)


def show_replay(result: ReplayResult, console: Console) -> None:
    """Print what was found."""
    start = f"from the checkpoint of step {result.checkpoint}" if result.checkpoint else "from the beginning"
    outcome = "not finite again" if result.reproduced else "finite this time: not reproduced"
    console.print(
        f"step {result.step} of {result.run}, {start}: {outcome} "
        f"(loss {_show(result.loss)}, norm of the gradient {_show(result.grad_norm)})",
        markup=False,
        highlight=False,
    )
    if result.weights:
        console.print(f"weights that are not finite before the step: {_names(result.weights)}")
    if module := result.module:
        comes_in = "its input is finite" if module.input_is_finite else "its input is not finite either"
        console.print(f"first output that is not finite: {module.name} ({module.kind}; {comes_in})")
    bad = [sample for sample in result.samples if isinstance(sample.loss, str)]
    console.print(f"samples whose loss is not finite: {len(bad)} of {len(result.samples)}", highlight=False)
    if bad:
        table = Table(Column("sample", overflow="fold"), "epoch", "index", "process", "loss")
        for sample in bad[:20]:
            table.add_row(escape(sample.name), *map(str, (sample.epoch, sample.index, sample.rank, sample.loss)))
        console.print(table)
    console.print(f"gradients that are not finite: {_names(result.gradients)}")


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more if names else "none"
