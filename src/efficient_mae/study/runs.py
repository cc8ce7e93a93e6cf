"""Runs the cells of a study: each an `emae pretrain` and an `emae finetune` in processes of their own.

    OUT/cells/CELL/seed-S/pretrain/   run directory of `emae pretrain`
    OUT/cells/CELL/seed-S/finetune/   run directory of `emae finetune`
    OUT/cells/CELL/seed-S/log.txt     what both printed

A process that crashes takes its own run with it and no other. A run that is done leaves a record of its command, and
is not started again; one that isn't goes on from its last checkpoint.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_mae.children import stopping_with_this_process
from efficient_mae.console import say
from efficient_mae.data import DataChoice
from efficient_mae.engine.machine.facts import available_cores
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.study.cells import Cell
from efficient_mae.study.presets import Preset


@dataclass(frozen=True)
class CellRun:
    """A cell with a seed.

    Attributes:
        folder: of its runs.
        commands: subcommand of `emae` and its arguments, in the order to run them.
    """

    cell: Cell
    seed: int
    folder: Path
    commands: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def name(self) -> str:
        return f"{self.cell.name} seed {self.seed}"

    def is_done(self) -> bool:
        """All of its commands have run to their end."""
        return all(_record(self.folder, command) == list(arguments) for command, arguments in self.commands)


def plan_runs(
    cells: Sequence[Cell],
    preset: Preset,
    *,
    seeds: Sequence[int],
    data: str,
    choice: DataChoice,
    labelled: str | None,
    out: Path,
    device: str,
) -> list[CellRun]:
    """The runs of these cells, a seed of all before the next seed.

    Args:
        data: to pre-train on.
        choice: of what they hold.
        labelled: to fine-tune on; None does not fine-tune.
        out: directory of the studies that share these cells.
        device: as `emae pretrain --device`.
    """
    runs = {}
    for seed in seeds:
        for cell in cells:
            folder = out / "cells" / preset.directory(cell) / f"seed-{seed}"
            common = {"seed": seed, "device": device}
            taken = {name: value for name, value in asdict(choice).items() if value is not None}
            first = {**preset.pretraining(cell), **common, "data": data, **taken, "out": folder / "pretrain"}
            commands = [("pretrain", _flags(first))]
            if labelled is not None:
                weights = {"weights": folder / "pretrain", "out": folder / "finetune"}
                weights |= taken if labelled == data else {}
                commands.append(
                    ("finetune", _flags({**preset.finetuning(cell), **common, "data": labelled, **weights}))
                )
            runs.setdefault(folder, CellRun(cell, seed, folder, tuple(commands)))
    return list(runs.values())


def launcher(gpus: int) -> list[str]:
    """The beginning of a command line of `emae`: on so many GPUs at once where there are several."""
    alone = [sys.executable, "-m", "efficient_mae"]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    return alone if gpus < 2 else [*together, *alone[1:]]


def run_all(runs: Sequence[CellRun], jobs: int, gpus: int = 1) -> dict[str, str]:
    """Run what isn't done yet, so many at a time.

    Args:
        gpus: that each run takes.

    Returns:
        Why, by the name of each run that failed; the others went on.
    """
    pending = [run for run in runs if not run.is_done()]
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, run, jobs, gpus): run for run in pending}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run = futures[future]
                if reason := future.result():
                    failed[run.name] = f"{reason} ({run.folder / 'log.txt'})"
                say(f"{number} of {len(pending)}: {run.name} {'failed: ' + failed[run.name] if reason else 'done'}")
        except KeyboardInterrupt:
            # The processes got the interrupt too, and end at their last checkpoint.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _run(run: CellRun, jobs: int, gpus: int) -> str:
    """Run what a run still lacks; return why it failed, or nothing."""
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if jobs > 1:  # they share the cores, and would get in each other's way
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
    for command, arguments in run.commands:
        if _record(run.folder, command) == list(arguments):
            continue
        with (run.folder / "log.txt").open("ab") as log:
            start = log.tell()
            line = stopping_with_this_process([*launcher(gpus), command, *arguments])
            done = subprocess.run(line, stdout=log, stderr=log, env=environment)
        if done.returncode:
            printed = (run.folder / "log.txt").read_bytes()[start:].decode(errors="replace").strip()
            return printed.splitlines()[-1] if printed else f"exit status {done.returncode}"
        replace_file(run.folder / f"{command}.json", json.dumps(list(arguments), indent=1).encode())
    return ""


def _record(folder: Path, command: str) -> list[str] | None:
    """The arguments with which a command has run to its end here."""
    file = folder / f"{command}.json"
    return json.loads(file.read_bytes()) if file.is_file() else None


def _flags(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as a user would type them."""
    return tuple(part for name, value in settings.items() for part in (f"--{name}", _typed(value)))


def _typed(value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value)  # null, true, [0.1, 0.3]
