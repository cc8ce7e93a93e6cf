"""Checksums of a checkpoint's files: what a disk or a copy did to them is seen before they are loaded.

CRC-32, as in gzip and PNG: it finds accidents and is no seal. It is the fastest that Python brings along.
"""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# In a checkpoint: from its files' names to their checksums.
CHECKSUMS = "checksums.json"

_BLOCK = 4 << 20  # bytes


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Checksums of files, by their names below a folder.

    Raises:
        OSError: one can't be read.
    """
    return {file.relative_to(folder).as_posix(): _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    value, block = 0, memoryview(bytearray(_BLOCK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            value = zlib.crc32(block[:size], value)
    return f"{value:08x}"


def find_damage(checkpoint: Path, part: str = "", processes: Processes = ALONE) -> str:
    """What is wrong with a checkpoint, on every process; empty if it is as it was written.

    Args:
        checkpoint: its folder.
        part: looks at this file, or at what lies in this folder, alone.
        processes: that read a share of the files each; all of them call this.
    """
    found = processes.gather(_damage(checkpoint, part, processes.rank, processes.world_size))
    return "; ".join(sorted({problem for share in found for problem in share}))


def _damage(checkpoint: Path, part: str, rank: int, world_size: int) -> list[str]:
    try:
        recorded = dict(parse_json((checkpoint / CHECKSUMS).read_bytes(), CHECKSUMS))
    except (OSError, ValueError, TypeError) as error:
        return [f"{CHECKSUMS} can't be read ({getattr(error, 'strerror', None) or error})"]
    # No path is made of what a file says.
    there = {file.relative_to(checkpoint).as_posix(): file for file in checkpoint.rglob("*") if file.is_file()}
    names = sorted(name for name in recorded if not part or name == part or name.startswith(f"{part}/"))
    problems = []
    for name in names[rank::world_size]:
        try:
            if name not in there:
                problems.append(f"{name} is missing")
            elif _checksum(there[name]) != recorded[name]:
                problems.append(f"{name} isn't what was written")
        except OSError as error:
            problems.append(f"{name} can't be read ({error.strerror})")
    return problems


def last_whole(checkpoints: Sequence[Path], processes: Processes) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is as it was written, and what is wrong with those after it; every process calls this.

    Args:
        checkpoints: oldest first.
        processes: that read a share of the files each.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        problems = find_damage(checkpoint, processes=processes)
        if not problems:
            return checkpoint, damaged
        damaged[checkpoint] = problems
    if damaged:
        named = "; ".join(f"{path.name}: {problems}" for path, problems in damaged.items())
        raise InputError(
            f"{checkpoints[0].parent}: no checkpoint is whole ({named}); "
            "nothing was changed: put one back from a copy, or name another out to begin anew"
        )
    return None, {}


def refuse_damage(checkpoint: Path, part: str) -> None:
    """Refuse a file, or a folder, of a checkpoint that isn't as it was written. Without checksums all will do.

    Raises:
        InputError: names what is damaged.
    """
    if (checkpoint / CHECKSUMS).is_file() and (problems := find_damage(checkpoint, part)):
        raise InputError(f"{checkpoint}: damaged ({problems}); give another checkpoint, or an export")
