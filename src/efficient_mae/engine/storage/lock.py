"""Folders in which one process alone may write, on this machine and on those that share the disk."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficient_mae.console import say
from efficient_mae.errors import InputError

# In a folder while a process is at work there, which it names.
LOCK = ".lock"

_HELD, _NO_LOCKS = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """Keep all other processes out of a folder while the block runs.

    A process that ends, however it does, lets go: the lock is POSIX', which no child holds either. Where the disk
    knows no locks one line says so.

    Args:
        out: what the user calls it.

    Raises:
        InputError: another process holds it.
        OSError: no file can be made there.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    file = folder / LOCK
    with file.open("a+") as held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = file.is_file() and os.path.samestat(os.fstat(held.fileno()), file.stat())
        except OSError as error:
            if error.errno not in (*_HELD, *_NO_LOCKS):
                raise
            if is_ours := error.errno in _NO_LOCKS:
                say(f"out={out}: its disk has no locks, so nothing keeps a second run out of it")
        if not is_ours:
            held.seek(0)
            raise InputError(f"out={out}: {held.read() or 'another process'} is at work in it; name another")
        held.truncate(0)
        held.write(f"process {os.getpid()} of {socket.gethostname()}")
        held.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
