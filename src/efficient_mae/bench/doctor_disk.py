"""Checks of `emae doctor`: the output directory, room for checkpoints, and how fast they are written."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from efficient_mae.bench.doctor_finding import Finding, Plan, in_bytes, note, ok, problem

# Most that is written to measure the disk.
_WRITTEN = 64 << 20
# Seconds of a checkpoint beyond which it should be written less often.
_SLOW = 30


def check_out(plan: Plan) -> Finding:
    """Whether the run directory can be made and written."""
    path, folder = _existing(plan), _folder(plan)
    if path != folder:
        return problem(f"{path} is a file", "name another directory: --out")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return problem(f"{folder} cannot be written ({error.strerror})", "name another directory: --out")
    return ok(f"{plan.out} can be written")


def check_space(plan: Plan) -> Finding:
    """Room for the checkpoints that stay, and for the next one beside them."""
    free = shutil.disk_usage(_folder(plan)).free
    need = (plan.keep_checkpoints + 1) * plan.checkpoint_bytes
    found = f"{in_bytes(free)} free; {plan.keep_checkpoints} checkpoints and the next one take {in_bytes(need)}"
    if free < need:
        return problem(found, "make room, lower --keep_checkpoints, or name another directory: --out")
    return ok(found)


def check_writing(plan: Plan) -> Finding:
    """How long a checkpoint takes to be on the disk."""
    size = min(_WRITTEN, plan.checkpoint_bytes)
    with tempfile.NamedTemporaryFile(dir=_folder(plan)) as file:
        content = os.urandom(1 << 20)
        begin = time.perf_counter()
        for first in range(0, size, len(content)):
            file.write(content[: size - first])
        file.flush()
        os.fsync(file.fileno())
        speed = size / (time.perf_counter() - begin)
    seconds = plan.checkpoint_bytes / speed
    found = f"{in_bytes(speed)}/s: a checkpoint of {in_bytes(plan.checkpoint_bytes)} takes {seconds:.1f} s"
    if seconds > _SLOW:
        return note(found, "raise --checkpoint_every, or name a directory on a faster disk")
    return ok(found)


DISK_CHECKS = {"out": check_out, "disk space": check_space, "disk speed": check_writing}


def _existing(plan: Plan) -> Path:
    """The run directory, or the nearest above it that is there."""
    path = Path(plan.out).expanduser().absolute()
    return next(above for above in (path, *path.parents) if above.exists())


def _folder(plan: Plan) -> Path:
    """The same, or the folder that holds it if it is a file."""
    path = _existing(plan)
    return path if path.is_dir() else path.parent
