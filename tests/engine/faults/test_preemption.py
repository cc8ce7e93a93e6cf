"""Signals that ask a run to stop: whose they are, and that they are given back."""

import signal
import threading
from collections.abc import Iterator

import pytest

from efficient_mae.engine.faults.preemption import StopRequests
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def handlers() -> Iterator[dict]:
    """A handler of the user's own for each signal."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    yield {number: signal.getsignal(number) for number in SIGNALS}
    for number, held in before.items():
        signal.signal(number, held)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_handlers_are_given_back(handlers: dict, number: int):
    requests = StopRequests(ALONE)
    with requests.noted():
        assert requests.agreed().stop == 0
        signal.raise_signal(number)
        assert requests.agreed().stop == number
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_only_a_second_ctrl_c_interrupts(handlers: dict):
    requests = StopRequests(ALONE)
    with pytest.raises(KeyboardInterrupt), requests.noted():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_an_ignored_signal_stays_ignored(handlers: dict):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a program that a script starts in the background
    requests = StopRequests(ALONE)
    with requests.noted():
        signal.raise_signal(signal.SIGINT)
    assert requests.agreed().stop == 0 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_another_thread_leaves_signals_alone(handlers: dict):
    seen = []

    def work():
        with StopRequests(ALONE).noted():
            seen.append({number: signal.getsignal(number) for number in SIGNALS})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_exit_statuses(number: int, status: int):
    assert Stopped(number, 3).status == status
