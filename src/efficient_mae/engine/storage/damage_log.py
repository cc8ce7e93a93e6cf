"""The images that a run could not read: counted, named, and forgotten when they are mended."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from efficient_mae.console import say
from efficient_mae.data import Source
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# Share of unreadable images beyond which a run stops; a single one never stops it.
MOST_DAMAGED = 0.01


def read_damaged(file: Path) -> list[tuple[str, str]]:
    """(name, reason) of the images that a run could not read; none if there is no file.

    Raises:
        InputError: it holds something else.
    """
    try:
        pairs = parse_json(file.read_bytes(), str(file))
    except FileNotFoundError:
        return []
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs
    )
    if not whole:
        raise InputError(f"{file}: doesn't hold [name, reason] of each unreadable image; remove it")
    return [(name, reason) for name, reason in pairs]


def refuse_unreadable(count: int, num_samples: int, named: str, mend: str, where: str = "") -> None:
    """Raise InputError if so many of so many images are more than may be unreadable.

    Args:
        named: says where they are named.
        mend: says what to do.
        where: says which images they are, to begin with.
    """
    if count > max(1, MOST_DAMAGED * num_samples):
        raise InputError(
            f"{where}{count} of {num_samples} images cannot be read, more than {MOST_DAMAGED:.0%}; {named}: {mend}"
        )


class DamageLog:
    """The images that could not be read, over all processes; kept in `damaged.json`.

    Args:
        folder: of the run.
        source: of the images.
        processes: that share the log.
        reads: whether the image of a number can be read: those that were mended since are forgotten, and so are those
            that aren't there any more.
    """

    def __init__(self, folder: Path, source: Source, processes: Processes, reads: Callable[[int], bool]):
        self._file = folder / "damaged.json"
        self._num_samples = len(source)
        self._processes = processes
        self.reasons: dict[str, str] = dict(read_damaged(self._file))
        processes.barrier()  # nobody writes before all have read
        if self.reasons:
            self._forget(source, reads)

    def _forget(self, source: Source, reads: Callable[[int], bool]) -> None:
        still: list[str] = []
        if self._processes.is_main:
            named = ((source.sample_name(index), index) for index in range(len(source)))
            found = islice(((name, index) for name, index in named if name in self.reasons), len(self.reasons))
            still = [name for name, index in found if not reads(index)]
        kept = {name for part in self._processes.gather(still) for name in part}
        if kept == self.reasons.keys():
            return
        self.reasons = {name: reason for name, reason in self.reasons.items() if name in kept}
        if self._processes.is_main:
            replace_file(self._file, json.dumps(sorted(self.reasons.items()), indent=1).encode())

    def add(self, damaged: list[tuple[str, str]]) -> None:
        """Add what this process came across since the last call; every process calls this at the same steps.

        Raises:
            InputError: too large a share of the images has turned out unreadable.
        """
        found = {name: reason for part in self._processes.gather(damaged) for name, reason in part}
        new = found.keys() - self.reasons.keys()
        if not new:
            return
        self.reasons |= found
        if self._processes.is_main:
            for name in sorted(new):
                say(f"skipped {name}: {found[name]}")
            replace_file(self._file, json.dumps(sorted(self.reasons.items()), indent=1).encode())
        refuse_unreadable(
            len(self.reasons),
            self._num_samples,
            f"they are named in {self._file}",
            "mend them, then give the same command again; or remove them, and add --accept_changed_data true",
        )

    def say_summary(self, most: int = 10) -> None:
        """Count and name them, on one line; nothing if there are none."""
        if not (self.reasons and self._processes.is_main):
            return
        names = sorted(self.reasons)
        more = f" and {len(names) - most} more" if len(names) > most else ""
        say(
            f"{len(names)} of {self._num_samples} images could not be read and others took their place: "
            f"{', '.join(names[:most])}{more} ({self._file})"
        )
