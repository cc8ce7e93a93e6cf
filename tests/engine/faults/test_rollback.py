"""Which images a run sees that went back, against the list of those it saw."""

from itertools import islice
from pathlib import Path

import pytest

from efficient_mae.data.batches.order import ResumableBatchSampler
from efficient_mae.engine.faults.rollback import Rollbacks
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.errors import DivergedError

ORDER = dict(num_samples=40, global_batch_size=8, seed=0)


def seen(folder: Path, start: int, end: int) -> list[list[tuple[int, int]]]:
    """The batches of steps `start` + 1 to `end` of a run as it is now."""
    sampler = ResumableBatchSampler(**ORDER, start=start, passed_over=Rollbacks(folder).passed_over)
    return [*islice(sampler, end - start)]


@pytest.mark.parametrize(
    "troubles",
    [
        [(205, 214), (301, 305)],
        [(205, 214), (201, 208)],  # back to the same checkpoint
        [(205, 214), (199, 208)],  # beyond it
        [(205, 214), (301, 305), (199, 308), (150, 151)],
    ],
)
def test_what_a_run_went_back_over_is_not_seen_again(troubles: list[tuple[int, int]], tmp_path: Path):
    ordered = [*islice(ResumableBatchSampler(**ORDER), 800)]
    for first, last in troubles:
        for step in (100, 200, 300):
            (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True, exist_ok=True)
        rollbacks = Rollbacks(tmp_path)
        (bad,) = seen(tmp_path, last - 1, last)
        rollbacks.go_back(DivergedError("loss", first, last), most=9, processes=ALONE)
        step = rollbacks.made[-1]["step"]
        assert step == max(one for one in (100, 200, 300) if one < first)
        # From there on it sees, in order, what lies behind the last batch that did harm.
        behind = ordered.index(bad) + 1
        assert seen(tmp_path, step, step + 150) == ordered[behind : behind + 150]
    assert seen(tmp_path, 0, 100) == ordered[:100]
