"""What the command line tells its process, which does nothing else: a function called from Python leaves it alone."""

from contextlib import suppress

from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import keep_compiled_products, keep_freed_memory
from efficient_mae.errors import InputError


def prepare_training(device: str | None) -> None:
    """On a CPU, what a step frees is kept for the next one.

    Args:
        device: as the user gave it; what is wrong with it is for the command to say.
    """
    if _is_cpu(device):
        keep_freed_memory()


def prepare_timing(device: str | None) -> None:
    """The same, and the products of several models are kept at once: they take turns."""
    if _is_cpu(device):
        keep_freed_memory()
        keep_compiled_products()


def _is_cpu(device: str | None) -> bool:
    with suppress(InputError):
        return find_device(device or "auto").type == "cpu"
    return False
