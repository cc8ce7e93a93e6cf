"""Several seeds of a run that learns with labels, and the results of each and of all."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from efficient_mae.command import Result
from efficient_mae.engine.machine.distributed import Processes, join_processes
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.tasks.downstream import Config, Labels, check_start

# What a finished run writes of its judgement.
RESULTS = "results.json"

Single = TypeVar("Single", bound=Result)
Several = TypeVar("Several", bound=Result)


def run_seeds(
    config: Config,
    open_data: Callable[[], Labels],
    make_run: Callable[[Config, Labels, Processes], Run],
    kind: type[Single],
    summarise: Callable[[Path, list[Single]], Several],
) -> Single | Several:
    """Train and judge a model, or one for each of several seeds; resume whatever is unfinished.

    Args:
        config: with `seeds`.
        open_data: called once for all seeds.
        make_run: writes its result (:func:`write_result`) when it is finished.
        kind: of that result.
        summarise: the results of several seeds, given the directory of them all.

    Returns:
        What the run directory's `results.json` holds too.

    Raises:
        InputError: a setting that cannot work, unusable data or weights, or a directory of another run.
        DivergedError: too many losses or gradients, or the weights, are not finite; the last checkpoint is good.
        OSError: the disk is full; the last checkpoint is intact.
    """
    check_start(config)
    out = Path(config.out)
    with join_processes(config.device) as processes:
        data = open_data()
        if config.seeds == 1:
            make_run(config, data, processes).execute()
            processes.barrier()
            return read_result(out, kind)
        _refuse_other_contents(out)
        singles = [
            dataclasses.replace(config, seed=seed, seeds=1, out=str(out / f"seed-{seed}"))
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for single in singles:
            make_run(single, data, processes).execute()
        processes.barrier()
        summary = summarise(out, [read_result(Path(single.out), kind) for single in singles])
        if processes.is_main:
            write_result(summary)
        return summary


def common(results: Sequence[Any]) -> dict[str, Any]:
    """What a summary has of the runs that it is of, and of their data: what is the same of all, and their seeds."""
    same = ("data", "weights", "epochs", "train_images", "test_images", "damaged", "classes")
    return {name: getattr(results[0], name) for name in same} | {"seeds": [one.seed for one in results]}


def _refuse_other_contents(out: Path) -> None:
    """Raise InputError if the directory of several seeds holds something else."""
    if out.is_dir():
        for entry in sorted(out.iterdir()):
            if entry.name != RESULTS and not entry.name.startswith("seed-"):
                raise InputError(f"out={out}: holds {entry.name}, which is no run of several seeds; name another")


def write_result(result: Result) -> None:
    """Into the directory that its field `run` names."""
    held = result.plain()
    replace_file(Path(held.pop("run")) / RESULTS, json.dumps(held, indent=1).encode())


def read_result(run: Path, kind: type[Single]) -> Single:
    """What a finished run wrote.

    Raises:
        InputError: it is something else.
    """
    file = run / RESULTS
    try:
        return kind.of(parse_json(file.read_bytes(), str(file)) | {"run": str(run)})
    except (TypeError, KeyError):
        raise InputError(f"{file}: isn't what a finished run writes; name another directory with --out") from None
