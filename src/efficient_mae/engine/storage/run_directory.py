"""A run's directory: whose it is, what it was made with, and of which images it is."""

import errno
import json
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from efficient_mae import __version__
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.checkpoint import find_checkpoints, read_state, step_of
from efficient_mae.engine.storage.data_record import (
    DATA,
    DataRecord,
    absolute,
    is_same_place,
    other_images,
    read_data_record,
)
from efficient_mae.engine.storage.durable import PARTIAL, clear_partial, replace_file
from efficient_mae.engine.storage.lock import LOCK, locked
from efficient_mae.engine.storage.plain_files import parse_yaml
from efficient_mae.errors import InputError
from efficient_mae.ranges import Settings, with_tuples

# Where nothing can be made, by the system's numbers: another user's folder, a disk that can only be read, /proc,
# a file.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)

# The settings that a run was made with, and what it ran on last.
SETTINGS, MACHINE = "config.yaml", "machine.json"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"

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


@contextmanager
def claimed_run_directory(
    folder: Path, task: str, config: Settings, operational: Collection[str], processes: Processes, data: DataRecord
) -> Iterator[DataRecord]:
    """Make the directory this run's, or find that it is already, and keep others out while the block runs; one in
    which no step was logged is anybody's.

    Args:
        folder: of the run.
        task: of the run; written to `config.yaml` with this version and the settings.
        config: the settings, with everything settled.
        operational: those that may differ from the ones that the directory was made with.
        processes: of which the main one writes.
        data: what the training images are; where the settings name others than the run was begun with, they may lie
            elsewhere, or be spelt otherwise, but must be the same, unless `accept_changed_data` is set.

    Yields:
        What is recorded of the images, with how many there were before.

    Raises:
        InputError: the directory holds something else, or a run of another task, of other settings or of other
            images; the differences are named. Another process is at work in it.
    """
    file = folder / SETTINGS
    given = asdict(config)
    ours = _plain(given | {name: absolute(given[name]) for name in config.locations if given[name] is not None})
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder}: is a file; name a directory")
    there = folder.iterdir() if folder.exists() else ()
    held = {path.name for path in there if not path.name.startswith(PARTIAL) and path.name != LOCK}
    logged = METRICS in held and (folder / METRICS).stat().st_size > 0
    if SETTINGS in held and (logged or held - {SETTINGS, MACHINE, DATA, METRICS, TENSORBOARD}):
        record = read_settings(folder)
        if record.task not in (task, None):
            raise InputError(f"out={folder} holds a run of {record.task}, not of {task}; name another")
        theirs = record.completed(type(config))
        before, accepts = _data_of(folder), bool(given.get("accept_changed_data"))
        moved = accepts or (before is not None and before.names != "" and data.is_same(before))
        passed = {*operational, "data"} if moved else set(operational)
        different = [
            f"{name} {_shown(theirs, name)} there, {_shown(ours, name)} here"
            for name in sorted(theirs.keys() | ours.keys())
            if name not in passed and theirs.get(name) != ours.get(name)
            if not (name in config.locations and is_same_place(theirs.get(name), ours.get(name)))
        ]
        if different:
            others = any(one.startswith("data ") for one in different) and before is not None
            mend = "; other images are accepted by --accept_changed_data true" if others else ""
            raise InputError(f"out={folder} holds a run of another configuration: {'; '.join(different)}{mend}")
        if before is not None:
            data = _went_on(folder, before, data, given["data"], accepts)
    elif held and SETTINGS not in held:
        raise InputError(f"out={folder} is neither empty nor a run directory; name another")
    seen = processes.gather((data.images, data.names))  # nobody goes on before all have looked
    if other := next((rank for rank, one in enumerate(seen) if one != seen[0]), None):
        counts = f"{seen[other][0]:,} images and the first {seen[0][0]:,}"
        names = ", by other names" if seen[other][0] == seen[0][0] else ""
        raise InputError(f"data={given['data']}: process {other} sees {counts}{names}; all must see the same")
    with ExitStack() as kept:
        if processes.is_main:
            content = yaml.safe_dump({"task": task, "version": __version__} | ours, sort_keys=False)
            with refusing_unwritable(folder):
                folder.mkdir(parents=True, exist_ok=True)
                kept.enter_context(locked(folder, folder))
                clear_partial(folder)
                replace_file(file, content.encode())
                data.write(folder)
        yield data


@contextmanager
def refusing_unwritable(out: Path) -> Iterator[None]:
    """Raise InputError where what is written to `out` cannot be; of a disk that is full or fails, what it says."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise InputError(f"out={out}: cannot be written ({error.strerror}); name another") from None


def _data_of(folder: Path) -> DataRecord | None:
    """What is known of a run's images; of one of the first versions, from its last checkpoint, their number alone."""
    record, last = read_data_record(folder), find_checkpoints(folder / "checkpoints")[-1:]
    if record is None and last:
        try:
            return DataRecord(read_state(last[0] / "state.json")["num_samples"], "")
        except (OSError, InputError):  # damaged, which its checksums will tell
            return None
    return record


def _went_on(folder: Path, before: DataRecord, now: DataRecord, name: str, accepts: bool) -> DataRecord:
    """What is recorded of the images of a run that is resumed.

    Raises:
        InputError: they are others, and that isn't accepted.
    """
    if before.images == now.images and before.names in ("", now.names):
        return replace(now, before=before.before)
    if not accepts:
        raise other_images(name, now.images, before.images, folder)
    steps = [step_of(one) for one in find_checkpoints(folder / "checkpoints")]
    return before.went_on_with(now, max(steps, default=0))


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
