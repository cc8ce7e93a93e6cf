"""Runs the cells of a study: each an `emae pretrain` and the commands that judge it, in processes of their own.

    OUT/cells/CELL/seed-S/pretrain/   run directory of `emae pretrain`
    OUT/cells/CELL/seed-S/untrained.safetensors   instead of it the encoder as it begins, of a model from scratch
    OUT/cells/CELL/seed-S/JUDGE/      that of each judge, or `results.json` alone of one that has none
    OUT/cells/CELL/seed-S/probe.safetensors   single answers of `emae probe`
    OUT/cells/CELL/seed-S/log.txt     what all printed
    OUT/cells/COMMAND/seed-S/         the same of what cells need beforehand, as a tokenizer

A process that crashes takes its own run with it and no other. A run that is done leaves a record of its command, and
is not started again; one that isn't goes on from its last checkpoint.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_mae.channels import default_mean_std
from efficient_mae.children import stopping_with_this_process
from efficient_mae.console import say
from efficient_mae.data import DataChoice
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.facts import available_cores
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.run_directory import METRICS
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.methods import MethodConfig
from efficient_mae.study.cells import Cell
from efficient_mae.study.presets import Preset, pretrained_config
from efficient_mae.study.probing import is_probe, probe_settings, subcommand_of
from efficient_mae.study.transfer import FOLDERS
from efficient_mae.tasks.registry import TASKS
from efficient_mae.tasks.seeds import RESULTS

_UNTRAINED = "untrained.safetensors"


@dataclass(frozen=True)
class CellRun:
    """A cell, or what cells need beforehand, with a seed.

    Attributes:
        of: the name of the cell or command.
        folder: of its runs.
        commands: subcommand of `emae`, or the judge that it is, and its arguments, in the order to run them.
        untrained: where nothing is pre-trained, the settings of the pre-training whose first weights are judged.
        needed: commands whose runs with the same seed it takes.
        looked_at: its weights are wanted, beside what judges say of them.
    """

    of: str
    seed: int
    folder: Path
    commands: tuple[tuple[str, tuple[str, ...]], ...]
    untrained: Mapping[str, Any] | None = None
    needed: tuple[str, ...] = ()
    looked_at: bool = False

    @property
    def name(self) -> str:
        return f"{self.of} seed {self.seed}"

    def is_done(self) -> bool:
        """All of its commands have run to their end, and what is wanted of them is still there."""
        done = all(_has_run(self.folder, command, arguments) for command, arguments in self.commands)
        return done and not (self.looked_at and self.is_lost())

    def is_lost(self) -> bool:
        """It has learned something whose weights were not kept, as in version control, whatever else was."""
        command, place = self.commands[0][0], self.folder / self.commands[0][0]
        kept = {path.name for path in place.iterdir()} if place.is_dir() else set[str]()
        learned = command in ("pretrain", "tokenizer") and (self.folder / f"{command}.json").is_file()
        return learned and kept <= {METRICS, RESULTS}


@dataclass(frozen=True)
class Place:
    """What the runs of a directory of studies have in common.

    Attributes:
        out: the directory.
        data: to pre-train on.
        choice: of what they hold.
        labelled: for judges, or the folder of what other tasks take; None has no run judged.
        device: as `emae pretrain --device`.
    """

    out: Path
    data: str
    choice: DataChoice
    labelled: str | None
    device: str

    @property
    def chosen(self) -> dict[str, Any]:
        """The choice, as far as one was made."""
        return {name: value for name, value in asdict(self.choice).items() if value is not None}

    def judged_on(self, judge: str) -> str | None:
        """The data that a judge takes."""
        if self.labelled is None or judge not in FOLDERS:
            return self.labelled
        return str(Path(self.labelled) / FOLDERS[judge])

    def pretraining(self, cell: Cell, preset: Preset, seed: int) -> dict[str, Any]:
        """All settings of a cell's pre-training but its directory."""
        common = {"seed": seed, "device": self.device, "data": self.data, **self.chosen}
        return {**preset.pretraining(cell), **made_settings(cell, self.out, seed), **common}


def made_settings(cell: Cell, out: Path, seed: int) -> dict[str, str]:
    """A cell's settings that name runs of other commands."""
    return {name: str(folder_of(out, command, seed) / command) for name, command in cell.made.items()}


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Of the runs with a seed of a cell's directory, or of a command that cells need."""
    return out / "cells" / name / f"seed-{seed}"


def plan_made(cells: Sequence[tuple[Cell, int]], preset: Preset, place: Place) -> list[CellRun]:
    """The runs that these cells, each with a seed, need beforehand."""
    runs = {}
    for cell, seed in cells:
        for command in cell.made.values():
            folder = folder_of(place.out, command, seed)
            where = {"seed": seed, "device": place.device, "data": place.data, "out": folder / command}
            given = flags({**preset.settings(command, cell), **place.chosen, **where})
            runs.setdefault(folder, CellRun(command, seed, folder, ((command, given),), looked_at=True))
    return list(runs.values())


def plan_runs(
    cells: Sequence[Cell], preset: Preset, seeds: Sequence[int], judges: Sequence[str], place: Place
) -> list[CellRun]:
    """The runs of these cells, a seed of all before the next seed.

    Args:
        judges: commands that judge each, if there are labels; without any the weights are looked at.
    """
    runs = {}
    for seed in seeds:
        for cell in cells:
            folder = folder_of(place.out, preset.directory(cell), seed)
            first = {**place.pretraining(cell, preset, seed), "out": folder / "pretrain"}
            weights = folder / ("pretrain" if cell.pretrained else _UNTRAINED)
            commands = [("pretrain", flags(first))] if cell.pretrained else []
            for judge in judges if place.labelled is not None else ():
                if is_probe(judge):  # which draws few labels itself
                    settings = {**probe_settings(judge, cell, preset, seed, folder), "data": place.data}
                else:
                    settings = {**preset.settings(judge, cell), "seed": seed, "data": place.judged_on(judge)}
                    settings |= {"out": folder / judge} if has_directory(judge) else {}
                settings |= {"weights": weights, "device": place.device}
                settings |= place.chosen if settings["data"] == place.data else {}
                commands.append((judge, flags(settings)))
            untrained = None if cell.pretrained else preset.pretraining(cell)
            needed = tuple(cell.made.values())
            run = CellRun(cell.name, seed, folder, tuple(commands), untrained, needed, looked_at=not judges)
            runs.setdefault(folder, run)
    return list(runs.values())


def lost_among(runs: Sequence[CellRun]) -> dict[str, str]:
    """Why, by name, for runs that can't be gone on with: another run's weights would take the name of theirs."""
    return {
        run.name: f"{run.folder}: its weights were not kept, and what it still lacks needs them; without the folder, "
        "and what was judged of it there, all of it is run anew"
        for run in runs
        if run.is_lost() and not run.is_done()
    }


def has_directory(command: str) -> bool:
    """A command keeps its result in a run directory of its own; else it prints it."""
    return command in TASKS


def launcher(gpus: int) -> list[str]:
    """The beginning of a command line of `emae`: on so many GPUs at once where there are several."""
    alone = [sys.executable, "-m", "efficient_mae"]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    return alone if gpus < 2 else [*together, *alone[1:]]


def run_all(
    runs: Sequence[CellRun], jobs: int, gpus: int = 1, after_seed: Callable[[dict[str, str]], object] | None = None
) -> dict[str, str]:
    """Run what isn't done yet, so many at a time.

    Args:
        gpus: that each run takes.
        after_seed: called when all runs with a seed are over and others are left, with what has failed so far.

    Returns:
        Why, by the name of each run that failed; the others went on.
    """
    pending = [run for run in runs if not run.is_done()]
    failed: dict[str, str] = {}
    left = Counter(run.seed for run in pending)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, run, jobs, gpus): run for run in pending}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run = futures[future]
                if reason := future.result():
                    failed[run.name] = f"{reason} ({run.folder / 'log.txt'})"
                say(f"{number} of {len(pending)}: {run.name} {'failed: ' + failed[run.name] if reason else 'done'}")
                left[run.seed] -= 1
                if after_seed is not None and not left[run.seed] and number < len(pending):
                    after_seed(failed)
        except BaseException:
            # What hasn't begun stays so. On an interrupt, which the processes got too, they end at a checkpoint.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _run(run: CellRun, jobs: int, gpus: int) -> str:
    """Run what a run still lacks; return why it failed, or nothing."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.untrained is not None:
        _write_untrained(run.folder / _UNTRAINED, pretrained_config(run.untrained), run.seed)
    environment = environment_of(jobs)
    for command, arguments in run.commands:
        if _has_run(run.folder, command, arguments):
            continue
        prints = not has_directory(command)
        with (run.folder / "log.txt").open("ab") as log:
            start = log.tell()
            line = [*launcher(gpus), subcommand_of(command), *arguments, *["--json"] * prints]
            output = subprocess.PIPE if prints else log
            done = subprocess.run(stopping_with_this_process(line), stdout=output, stderr=log, env=environment)
        if done.returncode:
            printed = (run.folder / "log.txt").read_bytes()[start:].decode(errors="replace").strip()
            return printed.splitlines()[-1] if printed else f"exit status {done.returncode}"
        if prints:
            (run.folder / command).mkdir(exist_ok=True)
            replace_file(run.folder / command / RESULTS, done.stdout)
        replace_file(run.folder / f"{command}.json", json.dumps(list(arguments), indent=1).encode())
    return ""


def _write_untrained(file: Path, config: MethodConfig, seed: int) -> None:
    with torch_seeded(seed):
        encoder = config.make_backbone()
    save_encoder(file, encoder, ImageStatistics(*default_mean_std(encoder.in_chans)))


def environment_of(jobs: int) -> dict[str, str]:
    """The variables of a process that is one of so many at a time."""
    environment = dict(os.environ)
    if jobs > 1:  # they share the cores, and would get in each other's way
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
    return environment


def _has_run(folder: Path, command: str, arguments: Sequence[str]) -> bool:
    """A command has run to its end here with these arguments, wherever the directory lies now."""
    file = folder / f"{command}.json"
    return file.is_file() and _essence(json.loads(file.read_bytes())) == _essence(arguments)


def _essence(arguments: Sequence[str]) -> dict[str, str]:
    """What of arguments makes a run what it is: not the machine, and not the data, which the directory has one of."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    places = {name: given[name] for name in ("--out", "--weights", "--tokenizer") if name in given}
    below = {name: f"/{place}".rpartition("/cells/")[2] for name, place in places.items()}
    return {name: value for name, value in (given | below).items() if name not in ("--device", "--data")}


def flags(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as a user would type them."""
    return tuple(part for name, value in settings.items() for part in (f"--{name}", _typed(value)))


def _typed(value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value)  # null, true, [0.1, 0.3]
