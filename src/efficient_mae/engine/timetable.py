"""When a row of the log or a checkpoint is due by the clock, where steps or epochs are long."""

import time
from collections.abc import Callable

# Seconds without a row after which one is written, and of an epoch that ends with a checkpoint if it had none.
ROW_SECONDS, EPOCH_SECONDS = 30.0, 60.0


class Timetable:
    """A process' own clock; what is due is due for all processes only once they have agreed.

    Args:
        checkpoint_seconds: between two checkpoints, at most.
        clock: tells seconds.
    """

    def __init__(self, checkpoint_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._checkpoint_seconds, self._clock = checkpoint_seconds, clock
        self._row = self._checkpoint = self._epoch = clock()

    def row_is_due(self) -> bool:
        """Whether to ask for a row; asked for, it is as good as written."""
        due = self._clock() - self._row >= ROW_SECONDS
        if due:
            self.wrote_row()
        return due

    def checkpoint_is_due(self, epoch_ends: bool) -> bool:
        """Whether to ask for a checkpoint; asked for, it is as good as written.

        Args:
            epoch_ends: with the step that it would be of.
        """
        now = self._clock()
        due = now - self._checkpoint >= self._checkpoint_seconds
        if epoch_ends:
            due |= now - self._epoch >= EPOCH_SECONDS and self._checkpoint <= self._epoch
            self._epoch = now
        if due:
            self.wrote_checkpoint()
        return due

    def wrote_row(self) -> None:
        """A row was written, for whatever reason."""
        self._row = self._clock()

    def wrote_checkpoint(self) -> None:
        """A checkpoint was written, for whatever reason."""
        self._checkpoint = self._clock()
