"""A run's directory: whose it is, whether it is finished, and which images it could not read."""

import errno
import json
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from efficient_mae import __version__
from efficient_mae.console import say
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.durable import PARTIAL, clear_partial, replace_file
from efficient_mae.engine.storage.plain_files import parse_json, parse_yaml
from efficient_mae.errors import InputError
from efficient_mae.ranges import Settings, with_tuples

# Where nothing can be made, by the system's numbers: another user's folder, a disk that can only be read, /proc.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)

# The settings that a run was made with, and what it ran on last.
SETTINGS, MACHINE = "config.yaml", "machine.json"

# Share of unreadable images beyond which a run stops; a single one never stops it.
MOST_DAMAGED = 0.01

# A setting that, in the versions which did not write down the task yet, only runs of that task had.
_TASK_BY_SETTING = {"mask_ratio": "pretrain", "layer_decay": "finetune", "pool": "linear-probe"}

Kind = TypeVar("Kind", bound=Settings)


@dataclass(frozen=True)
class RunRecord:
    """What a run's `config.yaml` says.

    A version of this software reads the files of earlier ones. A setting that is missing, for it came later, has its
    default: a new setting's default does what was done before there was a choice. One that is no more, or not yet,
    can only be passed over where it is null.

    Attributes:
        task: that the run is of; None if the file is of no version and no task.
        version: that wrote the file; None of those that did not write it down.
        settings: plain values.
    """

    task: str | None
    version: str | None
    settings: dict[str, Any]

    def completed(self, kind: type[Settings]) -> dict[str, Any]:
        """The settings with those of today's that are missing, and without null ones that aren't of today."""
        defaults = {one.name: one.default for one in fields(kind) if one.default is not MISSING}
        known = {one.name for one in fields(kind)}
        kept = {name: value for name, value in self.settings.items() if name in known or value is not None}
        return _plain(defaults) | kept

    def restore(self, kind: type[Kind], **changed: Any) -> Kind:
        """The settings as an object of today.

        Args:
            changed: these are other than in the file.

        Raises:
            InputError: a setting that isn't of today and not null, that cannot work, or that is missing and has no
                default.
        """
        values = self.completed(kind) | changed
        known = {one.name for one in fields(kind)}
        for name in sorted(values.keys() ^ known):
            written = f"{SETTINGS}, written by {self.version or 'an early version'}"
            what = "is missing" if name in known else f"is {values[name]!r}, and no setting of {__version__}"
            raise InputError(f"{written}: {name} {what}")
        return kind(**with_tuples(values))


def claim_run_directory(
    folder: Path, task: str, config: Settings, operational: Collection[str], processes: Processes
) -> None:
    """Make the directory this run's, or find that it is already; one in which no step was logged is anybody's.

    Args:
        folder: of the run.
        task: of the run; written to `config.yaml` with this version and the settings.
        config: the settings, with everything settled.
        operational: those that may differ from the ones that the directory was made with.
        processes: of which the main one writes.

    Raises:
        InputError: the directory holds something else, or a run of another task or other settings; the differences
            are named.
    """
    file = folder / SETTINGS
    ours = _plain(asdict(config))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder}: is a file; name a directory")
    held = {path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)} if folder.exists() else set()
    if SETTINGS in held and not held <= {SETTINGS, MACHINE}:
        record = read_settings(folder)
        if record.task not in (task, None):
            raise InputError(f"out={folder} holds a run of {record.task}, not of {task}; name another")
        theirs = record.completed(type(config))
        different = [
            f"{name} {_shown(theirs, name)} there, {_shown(ours, name)} here"
            for name in sorted(theirs.keys() | ours.keys())
            if name not in operational and theirs.get(name) != ours.get(name)
        ]
        if different:
            raise InputError(f"out={folder} holds a run of another configuration: {'; '.join(different)}")
    elif held and SETTINGS not in held:
        raise InputError(f"out={folder} is neither empty nor a run directory; name another")
    processes.barrier()  # nobody writes before all have looked
    if processes.is_main:
        content = yaml.safe_dump({"task": task, "version": __version__} | ours, sort_keys=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_partial(folder)
            replace_file(file, content.encode())
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise InputError(f"out={folder}: cannot be written ({error.strerror}); name another") from None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """What will be read of settings that are written: YAML knows no tuples."""
    return yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(settings))))


def _shown(settings: dict[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "unknown"


def read_settings(folder: Path) -> RunRecord:
    """What a run was made with.

    Raises:
        InputError: there is no record, or it cannot be read.
    """
    file = folder / SETTINGS
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{folder}: not a run directory, it has no config.yaml") from None
    settings = parse_yaml(content, str(file))
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise InputError(f"{file}: holds no settings, each with a name")
    for name in ("data", "task", "version"):
        if not isinstance(settings.get(name, ""), str):
            raise InputError(f"{file}: {name}={settings[name]!r}: must be a name")
    task, version = settings.pop("task", None), settings.pop("version", None)
    return RunRecord(task or _task_of_old_settings(settings), version, settings)


def _task_of_old_settings(settings: Collection[str]) -> str | None:
    """The task of a run of the versions that didn't write it down; None if these settings are of none of theirs."""
    return next((task for name, task in _TASK_BY_SETTING.items() if name in settings), None)


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


def refuse_damage(count: int, num_samples: int, named: str, where: str = "") -> None:
    """Raise InputError if so many of so many images are more than may be unreadable.

    Args:
        named: says where they are named.
        where: says which images they are, to begin with.
    """
    if count > max(1, MOST_DAMAGED * num_samples):
        raise InputError(
            f"{where}{count} of {num_samples} images cannot be read, more than {MOST_DAMAGED:.0%}; {named}: mend or "
            "remove them, then give the same command again"
        )


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
        refuse_damage(len(self.reasons), self._num_samples, f"they are named in {self._file}")

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
