"""Rows and checkpoints by the clock, which here is a number."""

import pytest
import torch

from efficient_mae.engine.faults.preemption import Agreed, StopRequests
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.timetable import Timetable


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written(timetable: Timetable, clock: Clock, seconds: float, steps: int, per_epoch: int) -> tuple[list, list]:
    """Steps, of so many seconds, after which a row or a checkpoint is due."""
    rows, saves = [], []
    for step in range(1, steps + 1):
        clock.now += seconds
        rows += [step] * timetable.row_is_due()
        saves += [step] * timetable.checkpoint_is_due(step % per_epoch == 0)
    return rows, saves


def test_long_steps(clock: Clock):
    """A row for each of more than half a minute, a checkpoint every ten minutes."""
    rows, saves = written(Timetable(600, clock), clock, 40, 60, 10**6)
    assert rows == list(range(1, 61)) and saves == [15, 30, 45, 60]


def test_an_epoch_of_more_than_a_minute_ends_with_a_checkpoint(clock: Clock):
    assert written(Timetable(600, clock), clock, 7, 40, 10)[1] == [10, 20, 30, 40]
    assert written(Timetable(600, clock), clock, 5, 40, 10)[1] == []  # epochs of 50 s
    # Epochs of 1,000 s have one in the middle.
    assert written(Timetable(600, clock), clock, 100, 20, 10)[1] == [6, 12, 18]


def test_what_was_written_otherwise_counts(clock: Clock):
    timetable = Timetable(600, clock)
    clock.now = 599
    timetable.wrote_checkpoint()
    clock.now = 601
    assert not timetable.checkpoint_is_due(False) and timetable.row_is_due() and not timetable.row_is_due()


def test_one_process_does_at_once_what_it_asks_for():
    requests = StopRequests(ALONE)
    assert requests.lag == 0 and requests.agreed() == Agreed()
    assert requests.agreed(row=True, checkpoint=True) == Agreed(0, True, True)


def test_several_do_what_the_main_one_asked_for_a_step_later(monkeypatch: pytest.MonkeyPatch):
    """Two processes in one: what is reduced is what both asked for."""
    from dataclasses import replace

    others = torch.tensor([0, 0, 0])

    class Done:
        def wait(self) -> None:
            return

    def reduce(number: torch.Tensor, *_: object, **__: object) -> Done:
        number.copy_(torch.maximum(number, others))
        return Done()

    monkeypatch.setattr("torch.distributed.all_reduce", reduce)
    main, other = (StopRequests(replace(ALONE, world_size=2, rank=rank)) for rank in (0, 1))
    assert main.lag == 1 and main.agreed(row=True) == Agreed() and main.agreed() == Agreed(row=True)
    assert other.agreed(checkpoint=True) == Agreed() and other.agreed() == Agreed()
