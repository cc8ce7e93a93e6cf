"""Files that are whole or not there at all, whenever the program is killed, and on the disk when it says so."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

# What is being written has a name that begins so, and gets its own when it is done.
PARTIAL = ".partial-"


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file and flush it to the disk.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    except SafetensorError as error:
        raise OSError(system_error(str(error)), str(error), str(file)) from error
    share(file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def replace_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """:func:`save_tensors`, of which nothing is seen under the file's name before all of it is there.

    Raises:
        OSError: the disk is full or not writable.
    """
    partial = file.with_name(f"{PARTIAL}{file.name}")
    save_tensors(partial, tensors, metadata)
    partial.replace(file)
    sync_folder(file.parent)


def share(file: Path) -> None:
    """Let others read a file that safetensors wrote, for its owner's eyes only, as they may read any other file."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def append_synced(file: Path, content: bytes) -> None:
    """Write at the end of a file and flush it to the disk."""
    with file.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def whole_lines(file: Path) -> Iterator[bytes]:
    """Lines of a file, with their ends; what was being appended when the program was killed is none."""
    with file.open("rb") as stream:
        yield from (line for line in stream if line.endswith(b"\n"))


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whenever the machine stops."""
    partial = file.with_name(f"{PARTIAL}{file.name}")
    write_synced(partial, content)
    partial.replace(file)
    sync_folder(file.parent)


def clear_partial(folder: Path) -> None:
    """Remove what a run that was killed had begun to write anywhere in its folder."""
    for path in folder.rglob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def system_error(message: str) -> int:
    """The number of the system's error that safetensors hides in its message."""
    code = re.search(r"os error (\d+)", message)
    return int(code[1]) if code else errno.EIO
