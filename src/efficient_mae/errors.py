"""The exceptions that tell the user something: an input to be mended, training that stops or cannot go on."""

import difflib
import signal
import sys
import traceback
from collections.abc import Iterable

# sysexits.h's EX_TEMPFAIL, "try again later": what a scheduler takes for a reason to start the run again.
PREEMPTED = 75
# What a shell makes of a program that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT
# This package, as its modules' names begin.
_OWN = __name__.partition(".")[0]


class InputError(ValueError):
    """An input that cannot work: the message says what, where, and what would be accepted.

    The command line prints it as one line and exits with status 2.
    """


class NoHeldOutPart(InputError):  # noqa: N818 - there may be no need of one
    """Data of which no part is held out, though it was asked for."""


class DivergedError(Exception):
    """Training that went out of the numbers: the message says so in one line and names the last good checkpoint.

    Attributes:
        first: the first step, from 1, that is known to be bad.
        last: the step at which it is too much.

    The command line prints it as one line and exits with status 1: no input is at fault that could be named.
    """

    def __init__(self, message: str, first: int, last: int):
        super().__init__(message)
        self.first, self.last = first, last


class LostProcessError(RuntimeError):
    """Another of the processes that train together has ended, or is out of reach; one line."""


class WorkerFailure(RuntimeError):  # noqa: N818 - it is the worker's, not the code's
    """A loader's worker process died, or gave no batch in time; the message is one line."""


class Stopped(Exception):  # noqa: N818 - no error: it did as it was asked
    """A run was asked to stop, and did, with a checkpoint; as it is, it can be resumed.

    Attributes:
        status: with which its process should end: 75 if the machine is taken away, 130 after Ctrl-C.
    """

    def __init__(self, number: int, step: int):
        """
        Args:
            number: of the signal.
            step: that was saved.
        """
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}; step {step} is saved, and the same command again resumes after it")
        self.status = INTERRUPTED if number == signal.SIGINT else PREEMPTED


def broken_library(error: Exception) -> str | None:
    """What to say of a library whose import raised this, on one line; None if the fault is this package's own."""
    # What an ImportError could not import, or import from; the file that a SyntaxError is in.
    missing = str(getattr(error, "name", None) or getattr(error, "filename", None) or "")
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Python's own modules raise for whoever called them.
    packages = [top for name in frames if (top := name.partition(".")[0]) not in sys.stdlib_module_names]
    library = packages[-1] if packages else _OWN
    asked_by_us = library in (_OWN, "__main__")
    lacking = isinstance(error, ImportError | AttributeError | SyntaxError)
    if missing.partition(".")[0] == _OWN or f"/{_OWN}/" in missing or (asked_by_us and not lacking):
        return None
    kind = "" if isinstance(error, ImportError | OSError) else type(error).__name__
    parts = ("" if asked_by_us else library, kind, " ".join(str(error).split()))
    said = ": ".join(part for part in parts if part)
    return f"a library cannot be imported ({said}): install it again; torch and torchvision must match"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is spelt most like an unknown one, if any is like it.

    Args:
        cutoff: least likeness, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A suggestion to append to an error about an unknown name; empty if no known one is near.

    Args:
        known: names; where none is spelt alike, one that has the unknown one for a word will do: `base_lr` for `lr`.
        prefix: goes before the name that is suggested.
    """
    known = list(known)
    found = nearest(name, known) or next((one for one in known if name in one.split("_")), None)
    return f"; did you mean {prefix}{found}?" if found else ""
