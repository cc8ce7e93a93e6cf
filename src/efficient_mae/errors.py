"""The errors that tell the user something: an input to be mended, and training that cannot go on."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An input that cannot work: the message says what, where, and what would be accepted.

    The command line prints it as one line and exits with status 2.
    """


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


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A suggestion to append to an error about an unknown name; empty if no known one is near.

    Args:
        prefix: goes before the name that is suggested.
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""
