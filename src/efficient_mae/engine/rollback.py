"""Going back: a run that would stop goes on from its last checkpoint instead, and sees other images from there on.

As PaLM did it (Chowdhery et al. 2022, Sec. 5.1), where the same images did no harm to other weights. Which batch a
step sees stays a function of the step and of `rollbacks.json`, so a run that is killed resumes as ever.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from efficient_mae.engine.checkpoint import find_checkpoints, replace_file, step_of
from efficient_mae.engine.distributed import Processes


class Rollbacks:
    """The times that a run went back; kept in `rollbacks.json`.

    Attributes:
        made: of each the checkpoint's `step`, and the number of `batches` that are passed over after it.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._file = folder / "rollbacks.json"
        self.made: list[dict[str, int]] = json.loads(self._file.read_bytes()) if self._file.exists() else []

    @property
    def passed_over(self) -> list[tuple[int, int]]:
        """(step, batches), as a sampler takes them."""
        return [(one["step"], one["batches"]) for one in self.made]

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether this record of a step is of the run as it is now, and not of steps that it went back over."""
        return all(row["step"] <= one["step"] for one in self.made[row["rollbacks"] :])

    def add(self, step: int, batches: int, processes: Processes) -> None:
        """Go back to the checkpoint of a step; every process calls this.

        Checkpoints after it go first: a run that is killed in between comes to the same decision again.
        """
        self.made.append({"step": step, "batches": batches})
        if processes.is_main:
            for checkpoint in find_checkpoints(self._file.parent / "checkpoints"):
                if step_of(checkpoint) > step:
                    # Under another name, so that half a checkpoint is never taken for one.
                    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".partial-{checkpoint.name}")))
            replace_file(self._file, json.dumps(self.made).encode())
        processes.barrier()
