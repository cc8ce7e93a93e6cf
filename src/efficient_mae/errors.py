"""The one error that means: the input can be mended by whoever gave it."""


class InputError(ValueError):
    """An input that cannot work: the message says what, where, and what would be accepted.

    The command line prints it as one line and exits with status 2.
    """
