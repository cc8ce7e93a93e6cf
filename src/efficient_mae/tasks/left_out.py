"""Images that can't be read, and so are left out of a judgement: named, counted, and refused where they are many."""

from collections.abc import Iterable

from efficient_mae.console import say
from efficient_mae.engine.storage.damage_log import refuse_unreadable


class LeftOut:
    """The images of a source that a judgement leaves out.

    Args:
        name: of the source.
        num_samples: images in it.
        known: the reason, by name, of each that was told of; added to.
        quiet: says nothing, where another process does.
    """

    def __init__(self, name: str, num_samples: int, known: dict[str, str], quiet: bool = False):
        self._name, self._num_samples, self._known, self._quiet = name, num_samples, known, quiet
        self._reasons: dict[str, str] = {}

    def add(self, damaged: Iterable[tuple[str, str]]) -> None:
        """Tell of those that are new.

        Args:
            damaged: (name, reason) of each.

        Raises:
            InputError: there are too many by now, as in pre-training.
        """
        for name, reason in damaged:
            self._reasons[name] = reason
            if name not in self._known and not self._quiet:
                say(f"left out {name}: {reason}")
            self._known[name] = reason
        if self._reasons:
            name, reason = next(iter(self._reasons.items()))
            first = f"the first is {name}: {reason}"
            mend = "mend or remove them, then give the same command again"
            refuse_unreadable(len(self._reasons), self._num_samples, first, mend, f"{self._name}: ")
