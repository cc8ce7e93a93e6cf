"""How long an epoch of each method takes here, measured before cells that are to last as long as another.

OUT/speeds.json              seconds an epoch and memory of a process, by the directory of the cell
OUT/speeds/CELL/round-R/     the timed runs
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from efficient_mae.children import stopping_with_this_process
from efficient_mae.console import say
from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.run_directory import METRICS
from efficient_mae.errors import InputError
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.costs import forward_gmacs
from efficient_mae.study.presets import Preset
from efficient_mae.study.runs import Place, environment_of, flags, launcher

_FILE, _ROUNDS = "speeds.json", 2
# What of its time a cell may last too long or too short, where that is a whole number of epochs.
_NEAR = 0.1
# Of an epoch that has more, so many tell how long it is.
_STEPS = 200
# Seconds between two looks at how many there are: looking takes time from what is timed.
_LOOK = 0.5


def measure_speeds(cells: Sequence[Cell], preset: Preset, place: Place, jobs: int) -> dict[str, str]:
    """Time an epoch of each cell that has a budget of time, and of what it lasts as long as, one after another.

    Twice, so that what else the machine does meets all of them. What was measured stays, and with it how long the
    runs are that went by it; a cell that is new is timed beside its budget, which is timed anew, and is held in the
    seconds that the budget had before: the machine may be slower or faster by now.

    Args:
        jobs: runs at a time that the study will have: each is timed with as many cores as it will have then.

    Returns:
        Why, by name, for those that failed.
    """
    held, failed = read_speeds(place.out), dict[str, str]()
    wanted: dict[str, dict[str, Cell]] = {}  # by budget, which is the first of them
    for cell in cells:
        if cell.as_long_as is not None and cell.measure == "time":
            pair = {preset.directory(one): one for one in (CELLS[cell.as_long_as], _by_epochs(cell))}
            budget = next(iter(pair))
            if new := {name: one for name, one in pair.items() if name not in held}:
                wanted.setdefault(budget, {budget: pair[budget]}).update(new)
    for budget, timed in wanted.items():
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in timed}
        for number in range(_ROUNDS):
            for name, cell in timed.items():
                try:
                    one = time_epoch(cell, preset, place, place.out / "speeds" / name / f"round-{number}", jobs)
                except InputError as error:
                    failed[name] = str(error)
                else:
                    rounds[name].append(one)
                    say(f"{name}: {one['seconds']:.1f} seconds an epoch (round {number + 1} of {_ROUNDS})")
        if budget in failed:
            continue
        now = mean(one["seconds"] for one in rounds[budget])
        unit = held[budget]["seconds"] / now if budget in held else 1.0
        for name in timed.keys() - held.keys() - failed.keys():
            seconds = [unit * one["seconds"] for one in rounds[name]]
            memory = max(one["memory"] for one in rounds[name])
            held[name] = {"seconds": mean(seconds), "memory": memory, "rounds": seconds}
        replace_file(place.out / _FILE, json.dumps(held, indent=1).encode())
    return failed


def time_epoch(cell: Cell, preset: Preset, place: Place, folder: Path, jobs: int) -> dict[str, float]:
    """Seconds of an epoch, as its first steps tell, and the most memory of the process that took them, GB."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    metrics = folder / "pretrain" / METRICS
    settings = {**place.pretraining(cell, preset, seed=0), "epochs": 1, "warmup_epochs": 0, "log_every": 1}
    line = [*launcher(1), "pretrain", *flags({**settings, "out": folder / "pretrain"})]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(stopping_with_this_process(line), stdout=log, stderr=log, env=environment_of(jobs))
        enough = False
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if not enough and (enough := len(read_metrics(metrics)) > _STEPS):
                os.kill(process.pid, signal.SIGTERM)  # Popen's own would reap one that has just ended
            time.sleep(_LOOK)
    _, status, used = ended
    if status and not enough:
        raise InputError(f"{cell.name}: the run that was to be timed failed ({folder / 'log.txt'})")
    rows = [row for row in read_metrics(metrics) if "images_per_second" in row]
    images = rows[-1]["step"] / rows[-1]["epoch"] * settings["batch_size"]
    return {
        "seconds": images / median(row["images_per_second"] for row in rows[len(rows) // 2 :]),
        "memory": used.ru_maxrss * 1024 / 1e9,
    }


def read_speeds(out: Path) -> dict[str, dict[str, Any]]:
    """What was measured so far: `seconds` an epoch, `memory` (GB) and `rounds`, by the directory of the cell."""
    file = out / _FILE
    return json.loads(file.read_bytes()) if file.is_file() else {}


def speed_of(cell: Cell, preset: Preset, out: Path) -> dict[str, Any]:
    """That of a cell's method, empty before it is measured."""
    return read_speeds(out).get(preset.directory(_by_epochs(cell)), {})


def settle_length(cell: Cell, preset: Preset, out: Path) -> Cell | None:
    """A cell with the epochs that it may take; None before the time of an epoch is measured.

    Whole epochs, whose runs others may share, where they come within a tenth of it; else to the hundredth of one. Of
    fewer epochs the same share is warm-up. What has been run, by whatever rule, stays as long as it is.
    """
    if cell.as_long_as is None:
        return cell
    other = CELLS[cell.as_long_as]
    if cell.measure == "gmacs":
        own, budget = (forward_gmacs(preset, one) for one in (cell, other))
    elif (ours := speed_of(cell, preset, out)) and (theirs := speed_of(other, preset, out)):
        own, budget = ours["seconds"], theirs["seconds"]
    else:
        return None
    base = preset.pretraining(other)
    exact = base["epochs"] * budget / own
    whole = max(1, round(exact))
    length = {"epochs": whole if abs(whole - exact) <= _NEAR * exact else round(exact, 2)}
    if "warmup_epochs" in base and length["epochs"] < base["epochs"]:
        length["warmup_epochs"] = round(base["warmup_epochs"] * length["epochs"] / base["epochs"], 3)
    settled = dataclasses.replace(cell, settings={**cell.settings, **length}, as_long_as=None)
    for record in sorted((out / "cells" / preset.directory(settled)).glob("seed-*/pretrain.json")):
        typed = json.loads(record.read_bytes())
        length = {one: json.loads(typed[typed.index(f"--{one}") + 1]) for one in length}
        return dataclasses.replace(settled, settings={**settled.settings, **length})
    return settled


def _by_epochs(cell: Cell) -> Cell:
    return dataclasses.replace(cell, as_long_as=None)
