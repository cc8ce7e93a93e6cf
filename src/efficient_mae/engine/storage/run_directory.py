"""A run's directory: whose it is, whether it is finished, and which images it could not read."""

import errno
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from efficient_mae.console import say
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.durable import PARTIAL, clear_partial, replace_file
from efficient_mae.engine.storage.plain_files import parse_json, parse_yaml
from efficient_mae.errors import InputError

# Where nothing can be made, by the system's numbers: another user's folder, a disk that can only be read, /proc.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)

# The settings that a run was made with, and what it ran on last.
SETTINGS, MACHINE = "config.yaml", "machine.json"

# Share of unreadable images beyond which a run stops; a single one never stops it.
MOST_DAMAGED = 0.01


def claim_run_directory(
    folder: Path, settings: dict[str, Any], operational: Collection[str], processes: Processes
) -> None:
    """Make the directory this run's, or find that it is already; one in which no step was logged is anybody's.

    Args:
        folder: of the run.
        settings: resolved settings, written to `config.yaml`.
        operational: those that may differ from the ones that the directory was made with.
        processes: of which the main one writes.

    Raises:
        InputError: the directory holds something else, or a run of other settings; the differences are named.
    """
    file = folder / SETTINGS
    # YAML knows no tuples; what is compared is what will be read.
    plain = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(settings))))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder}: is a file; name a directory")
    held = {path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)} if folder.exists() else set()
    if SETTINGS in held and not held <= {SETTINGS, MACHINE}:
        theirs = read_settings(folder)
        different = [
            f"{name} {theirs.get(name)!r} there, {plain.get(name)!r} here"
            for name in sorted(theirs.keys() | plain.keys())
            if name not in operational and theirs.get(name) != plain.get(name)
        ]
        if different:
            raise InputError(f"out={folder} holds a run of another configuration: {'; '.join(different)}")
    elif held and SETTINGS not in held:
        raise InputError(f"out={folder} is neither empty nor a run directory; name another")
    processes.barrier()  # nobody writes before all have looked
    if processes.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_partial(folder)
            replace_file(file, yaml.safe_dump(plain, sort_keys=False).encode())
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise InputError(f"out={folder}: cannot be written ({error.strerror}); name another") from None


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a run was made with.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    file = folder / SETTINGS
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{folder}: not a run directory, it has no config.yaml") from None
    settings = parse_yaml(content, str(file))
    if not isinstance(settings, dict):
        raise InputError(f"{file}: holds no settings")
    if not isinstance(settings.get("data", ""), str):
        raise InputError(f"{file}: data={settings['data']!r}: must be a name")
    return settings


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


class DamageLog:
    """The images that could not be read, over all processes; kept in `damaged.json`.

    Args:
        folder: of the run.
        num_samples: images in the data set.
        processes: that share the log.
    """

    def __init__(self, folder: Path, num_samples: int, processes: Processes):
        self._file = folder / "damaged.json"
        self._num_samples = num_samples
        self._processes = processes
        self.reasons: dict[str, str] = dict(read_damaged(self._file))
        processes.barrier()  # nobody writes before all have read

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
        if len(self.reasons) > max(1, MOST_DAMAGED * self._num_samples):
            raise InputError(
                f"{len(self.reasons)} of {self._num_samples} images cannot be read, more than {MOST_DAMAGED:.0%}; "
                f"they are named in {self._file}: mend or remove them, then give the same command again"
            )

    def summary(self, most: int = 10) -> str:
        """One line that counts and names them; empty if there are none."""
        if not self.reasons:
            return ""
        names = sorted(self.reasons)
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return (
            f"{len(names)} of {self._num_samples} images could not be read and others took their place: "
            f"{', '.join(names[:most])}{more} ({self._file})"
        )
