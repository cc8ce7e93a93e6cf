"""What torchrun or Slurm told this process: its place among those that they started together."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from efficient_mae.errors import InputError

# What torchrun sets, and what says the same in a job step of Slurm's.
_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}


class Place(NamedTuple):
    """A process' number among all and among those on its machine, and how many there are of all."""

    rank: int
    local_rank: int
    world_size: int


def place() -> Place:
    """This process' place, before the processes have met too; that of one alone unless torchrun or srun says more."""
    names = _SLURM.values() if _is_of_srun(os.environ) else _SLURM
    given = zip(names, ("0", "0", "1"), strict=True)
    return Place(*(int(os.environ.get(name, alone)) for name, alone in given))


def launch_environment() -> dict[str, str]:
    """The environment as torchrun would have set it, of a process that srun started too.

    Raises:
        InputError: Slurm names its machines in a way that is not understood.
    """
    return {**os.environ, **slurm_environment(os.environ)}


@contextmanager
def as_torchrun_says() -> Iterator[None]:
    """Within, the environment is :func:`launch_environment`, for what reads it there; afterwards as before."""
    added = slurm_environment(os.environ)
    before = {name: os.environ.get(name) for name in added}
    os.environ |= added
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def slurm_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, for a process that srun started; {} for one that it didn't.

    The variables of a job step are read, not those of a job: a batch script that starts one process is one process.

    Args:
        given: the environment.
    """
    if not _is_of_srun(given):
        return {}
    # As in gpu[003-006,9],gpu12 or r[1-2]n5: names, some with ranges of numbers.
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", given["SLURM_STEP_NODELIST"])
    tasks = re.match(r"\d+", given["SLURM_STEP_TASKS_PER_NODE"])
    if first is None or tasks is None:
        raise InputError(
            f"SLURM_STEP_NODELIST={given['SLURM_STEP_NODELIST']!r}: not understood; start with srun torchrun"
        )
    # A port of the job's own, for several may share a machine; below those that Linux hands out by itself.
    port = 15000 + int(given["SLURM_JOB_ID"]) % 15000
    return {
        **{name: given[slurm] for name, slurm in _SLURM.items()},
        "LOCAL_WORLD_SIZE": tasks[0],
        "MASTER_ADDR": given.get("MASTER_ADDR", "".join(part or "" for part in first.groups())),
        "MASTER_PORT": given.get("MASTER_PORT", str(port)),
    }


def _is_of_srun(given: Mapping[str, str]) -> bool:
    """Whether srun started it as one of several, and not torchrun."""
    return "WORLD_SIZE" not in given and int(given.get("SLURM_STEP_NUM_TASKS", "1")) > 1
