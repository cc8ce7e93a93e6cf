"""torchrun on two hosts, as docs/scaling.md says: the run is one host's, and survives its cables and its hosts.

What a host says and how it ends is torchrun's and the run's together; what is asserted is the run's.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.conftest import ENVIRONMENT, assert_same_result, last_row, rows, short_run

from .network import Host, Network, Started

pytestmark = pytest.mark.hosts

# Starting takes seconds, or half a minute on a busy machine; training as well.
PATIENCE = 300
# A host gives up another at the first try to reach it after two minutes; tries are up to a minute apart by then.
OUT_OF_REACH = 180


def start(host: Host, arguments: list[str], *options: str, **environment: str) -> Started:
    """The command of docs/scaling.md for several machines, on one of them."""
    launcher = ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "first:29500", *options]
    command = [sys.executable, "-m", *launcher, "-m", "efficient_mae", *arguments]
    return host.start(command, ENVIRONMENT | environment)


def await_that(condition: Callable[[], bool], *started: Started, timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "\n".join(one.said for one in started)
        time.sleep(0.002)


def assert_nothing_is_left(network: Network) -> None:
    """No process, of torchrun or of the run: those that read images notice within seconds that they are alone."""
    await_that(lambda: not any(host.pids() for host in network.hosts), timeout=30)


def assert_ends_as(out: Path, expected: Path, started: list[Started], network: Network) -> None:
    """All end well, with the result of the run that was left alone, and nothing else."""
    assert [one.wait(PATIENCE) for one in started] == [0, 0], [one.said for one in started]
    assert_nothing_is_left(network)
    assert_same_result(out, expected)
    assert rows(out) == rows(expected)


def train_to(step: int, network: Network, arguments: list[str], out: Path, *options: str, **environment: str):
    """Start on both hosts; come back when the run has logged so many steps."""
    started = [start(host, arguments, *options, **environment) for host in network.hosts]
    await_that(lambda: last_row(out) >= step, *started)
    return started


def test_it_is_the_run_of_one_host(network: Network, alone: Callable[[int], Path], images: Path, tmp_path: Path):
    """Also where a host's own name stands for a loopback address, as in Debian's /etc/hosts."""
    for host in network.hosts:
        host.is_named("127.0.1.1")
    out = tmp_path / "run"
    arguments = short_run(images, out)
    lost = [start(host, arguments) for host in network.hosts]
    said = r"^emae: cannot join the other processes: .*127\.0\.1\.1.*GLOO_SOCKET_IFNAME=eth0 names the device to use;"
    # One of them tries to reach the other, which waits for it.
    await_that(lambda: any(re.search(said, one.said, re.MULTILINE) for one in lost), *lost)
    for host in network.hosts:
        host.kill()
    assert not out.exists()

    started = [start(host, arguments, GLOO_SOCKET_IFNAME="eth0") for host in network.hosts]
    assert_ends_as(out, alone(2), started, network)


@pytest.mark.parametrize("what", ["the switch", "a host's link"])
def test_cut_for_five_seconds_it_goes_on(
    network: Network, alone: Callable[[int], Path], images: Path, tmp_path: Path, what: str
):
    turn = network.forward if what == "the switch" else network.hosts[1].link
    out = tmp_path / "run"
    started = train_to(9, network, short_run(images, out), out)
    before = last_row(out)
    turn("down")
    time.sleep(5)
    # The step under way may have been exchanged.
    assert last_row(out) <= before + 4 < 80
    turn("up")
    assert_ends_as(out, alone(2), started, network)


def test_cut_for_good_all_end_and_say_why(
    network: Network, alone: Callable[[int], Path], images: Path, tmp_path: Path
):
    out = tmp_path / "run"
    arguments = short_run(images, out)
    started = train_to(9, network, arguments, out)
    network.forward("down")
    await_that(lambda: all("emae: " in one.said for one in started), *started, timeout=OUT_OF_REACH)
    assert started[0].wait(60) == 1
    for rank, one in enumerate(started):
        assert re.search(
            rf"^emae: process {rank} of 2 lost another: Read error \[10\.77\.0\.\d\]:\d+: "
            "(Connection timed out|No route to host); the same command again resumes from the last checkpoint$",
            one.said,
            re.MULTILINE,
        ), one.said
    # The program has ended on both; the second host's torchrun waits for the first's until TCP gives up.
    await_that(lambda: not network.hosts[0].pids() and network.hosts[1].pids() == [started[1].process.pid], *started)
    network.hosts[1].kill()

    network.forward("up")
    started = [start(host, arguments) for host in network.hosts]
    assert_ends_as(out, alone(2), started, network)
    assert "resuming" in started[0].said


@pytest.mark.parametrize("killed", [0, 1], ids=["first", "second"])
def test_a_host_dies_and_is_back(
    network: Network, alone: Callable[[int], Path], images: Path, tmp_path: Path, killed: int
):
    out = tmp_path / "run"
    arguments = short_run(images, out)
    started = train_to(9, network, arguments, out)
    network.hosts[killed].kill()
    assert started[1 - killed].wait(60) == 1
    said = started[1 - killed].said
    # The second host's torchrun hears of the first's end too, and may end the process before that has said so.
    torchrun_was_first = killed == 0 and "RendezvousConnectionError" in said
    assert torchrun_was_first or f"emae: process {1 - killed} of 2 lost another: " in said
    assert_nothing_is_left(network)

    started = [start(host, arguments) for host in network.hosts]
    assert_ends_as(out, alone(2), started, network)
    assert "resuming" in started[0].said


def test_with_restarts_the_first_host_waits_for_the_second_to_be_back(
    network: Network, alone: Callable[[int], Path], images: Path, tmp_path: Path
):
    out = tmp_path / "run"
    arguments = short_run(images, out)
    options, environment = ("--max-restarts", "3"), {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    first, _ = train_to(9, network, arguments, out, *options, **environment)
    network.hosts[1].kill()
    await_that(lambda: "emae: process 0 of 2 lost another: " in first.said, first)
    started = [first, start(network.hosts[1], arguments, *options, **environment)]
    assert_ends_as(out, alone(2), started, network)
    assert "resuming" in first.said
