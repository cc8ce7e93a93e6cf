"""What the command line tells its process, which does nothing else: a function called from Python leaves it alone."""

from contextlib import suppress

from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import keep_freed_memory
from efficient_mae.errors import InputError


def prepare(device: str | None) -> None:
    """On a CPU, what a step frees is kept for the next one.

    Args:
        device: as the user gave it; what is wrong with it is for the command to say.
    """
    with suppress(InputError):
        if find_device(device or "auto").type == "cpu":
            keep_freed_memory()
