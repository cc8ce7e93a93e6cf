"""Going back: a run that would stop goes on from its last checkpoint instead, and sees other images from there on.

As PaLM did it (Chowdhery et al. 2022, Sec. 5.1), where the same images did no harm to other weights. Which batch a
step sees stays a function of the step and of `rollbacks.json`, so a run that is killed resumes as ever.
"""

import json
from pathlib import Path
from typing import Any

from efficient_mae.console import say
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.checkpoint import find_checkpoints, remove_checkpoint, step_of
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import DivergedError, InputError


class Rollbacks:
    """The times that a run went back; kept in `rollbacks.json`.

    Attributes:
        made: of each the checkpoint's `step`, and the number of `batches` that are passed over after it.

    Args:
        folder: of the run.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, folder: Path):
        self._folder, self._file = folder, folder / "rollbacks.json"
        self.made: list[dict[str, int]] = []
        if self._file.exists():
            self.made = parse_json(self._file.read_bytes(), str(self._file))
            if not (isinstance(self.made, list) and all(map(_is_rollback, self.made))):
                raise InputError(f"{self._file}: doesn't hold step and batches of each rollback")

    @property
    def passed_over(self) -> list[tuple[int, int]]:
        """(step, batches), as a sampler takes them: of those that no later one went back beyond."""
        return [
            (one["step"], one["batches"])
            for number, one in enumerate(self.made)
            if all(later["step"] >= one["step"] for later in self.made[number:])
        ]

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether this record of a step is of the run as it is now, and not of steps that it went back over."""
        return all(row["step"] <= one["step"] for one in self.made[row["rollbacks"] :])

    def go_back(self, error: DivergedError, most: int, processes: Processes) -> None:
        """Have the run go on from its last good checkpoint, with what comes next; every process calls this.

        Args:
            error: that would stop the run; raised if there is no such checkpoint, or it went back often enough.
            most: times that it may.
        """
        step = last_good(self._folder, error.first)
        if len(self.made) >= most or step == 0:
            raise error
        processes.barrier()  # nobody removes before all have looked
        # What was passed over on the way to the last bad step stays so.
        before = sum(batches for cut, batches in self.passed_over if step < cut < error.last)
        self.made.append({"step": step, "batches": error.last - step + before})
        if processes.is_main:
            say(
                f"{error}; going back there, past what steps {step + 1} to {error.last} saw "
                f"(rollback {len(self.made)} of {most})"
            )
            # Checkpoints go first: a run that is killed here comes to the same decision again.
            for checkpoint in find_checkpoints(self._folder / "checkpoints"):
                if step_of(checkpoint) > step:
                    remove_checkpoint(checkpoint)
            replace_file(self._file, json.dumps(self.made).encode())
        processes.barrier()


def _is_rollback(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), int) and value[name] >= 0 for name in ("step", "batches")
    )


def last_good(folder: Path, bad: int) -> int:
    """Steps done at a run's last checkpoint before a bad step; 0 if there is none."""
    return max((step for step in map(step_of, find_checkpoints(folder / "checkpoints")) if step < bad), default=0)
