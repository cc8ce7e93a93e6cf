"""What ended several processes, said once: by the first that meets it, be it met by one alone or by all."""

import hashlib
import os
import time
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

from efficient_mae.engine.machine.launcher import place

# Seconds that the process which keeps the store stays for the others: what all meet, they meet at about one time.
_PATIENCE = 5.0


@runtime_checkable
class Counters(Protocol):
    """PyTorch's store, by which processes tell each other their addresses."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number that all processes share; return what it is then."""
        ...


class _Company(NamedTuple):
    counters: Counters
    rank: int
    world_size: int


_joined: list[_Company] = []


def meet(counters: Counters, rank: int, world_size: int) -> None:
    """From now on this process is one of several."""
    _joined[:] = [_Company(counters, rank, world_size)]


def may_say(line: str) -> bool:
    """Whether it is for this process to say what ends it; each that ends calls this, and then :func:`see_out`.

    Before the processes have met, what one meets all meet: the first of a machine says it.
    """
    if not _joined:
        return place().local_rank == 0
    try:
        return _joined[0].counters.add(_key(line), 1) == 1
    except RuntimeError:  # the process that kept the store is gone: rather twice than never
        return True


def see_out(line: str) -> None:
    """Let the others ask whether this line has been said, if it is this process that keeps what has."""
    # torchrun keeps a store that outlives its processes.
    if not _joined or _joined[0].rank > 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    counters, _, world_size = _joined[0]
    deadline = time.monotonic() + _PATIENCE
    with suppress(RuntimeError):
        while counters.add(_key(line), 0) < world_size and time.monotonic() < deadline:
            time.sleep(0.05)


def _key(line: str) -> str:
    return f"said {hashlib.sha256(line.encode()).hexdigest()}"
