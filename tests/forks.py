"""`emae` in processes that start at once: a server has imported everything, and forks one for each command.

So a test can start a run dozens of times, and kill it. The server is a process of its own: one that has computed
anything has threads, which don't survive a fork.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import IO, NamedTuple

from tests.processes import free_port, survivors


class Ended(NamedTuple):
    """Exit status, negative for the signal that ended it, and what it said on stderr and on stdout."""

    status: int
    stderr: str
    stdout: str


class Run:
    """Processes of one command, each with its workers in a group of its own."""

    def __init__(self, server: "ForkServer", pids: list[int], logs: list[Path]):
        self._server, self.pids, self._logs = server, pids, logs
        self._statuses: dict[int, int] = {}

    def ended(self) -> bool:
        """Whether all processes have."""
        for pid in self.pids:
            if pid not in self._statuses and (status := self._server.ask({"wait": pid})) is not None:
                self._statuses[pid] = status
        return len(self._statuses) == len(self.pids)

    def kill(self) -> None:
        """Kill the processes as the kernel does that runs out of memory: them alone, and none of their workers."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one process, or to all with their workers."""
        for pid in self.pids if rank is None else ():
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        if rank is not None:
            os.kill(self.pids[rank], number)

    def wait(self, timeout: float = 120) -> list[Ended]:
        """How each has ended, by rank, and nothing that they started is left; kills those that don't end."""
        deadline = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError("".join(log.read_text() for log in self._logs))
            time.sleep(0.005)
        left = survivors(lambda process: process.group in self.pids)
        self.signal(signal.SIGKILL)
        assert not left, f"they live on: {left}"
        return [
            Ended(self._statuses[pid], log.read_text(), log.with_suffix(".out").read_text())
            for pid, log in zip(self.pids, self._logs, strict=True)
        ]


class ForkServer:
    """Starts commands; a context.

    Args:
        folder: for what they say.
    """

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: dict) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        processes: int = 1,
        slow_disk: float = 0.0,
        largest_file: int | None = None,
        folders: Sequence[Path] = (),
    ) -> Run:
        """Start `emae` with these arguments.

        Args:
            processes: as many as torchrun would start.
            slow_disk: seconds that the disk takes to flush a file: a kill is then more likely to come in between.
            largest_file: bytes beyond which the system lets no file grow.
            folders: in which the processes start, by rank; none for the server's own.
        """
        logs, pids, port = [], [], free_port()
        for rank in range(processes):
            self._count += 1
            logs.append(self._folder / f"stderr-{self._count}.txt")
            for file in (logs[-1], logs[-1].with_suffix(".out")):
                file.touch()  # a kill may come before the child opens it
            environment = {} if processes == 1 else {
                "RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            disk = {"slow_disk": slow_disk, "largest_file": largest_file}
            disk["folder"] = str(folders[rank]) if folders else None
            request = {"start": list(arguments), "environment": environment, "log": str(logs[-1]), **disk}
            pids.append(self.ask(request))
        return Run(self, pids, logs)


def _serve(requests: IO[str]) -> None:
    import efficient_mae.cli
    import tests.imported  # noqa: F401

    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would not survive the fork"
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
                status = efficient_mae.cli.main(request["start"])
                sys.stdout.flush()
                util._run_finalizers()  # which remove the folder of sockets that it shared with its workers
                os._exit(status)  # and of this process leave nothing
            with suppress(PermissionError):  # the child has done it already
                os.setpgid(answer, answer)
        print(json.dumps(answer), flush=True)


def _become(request: dict) -> None:
    """In the child: a process of its own, which hears nothing from the server and is heard in its log alone."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may have been ignored
    os.environ.update(request["environment"])
    log, results = (os.open(file, os.O_WRONLY) for file in (request["log"], Path(request["log"]).with_suffix(".out")))
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, stream in ((nothing, 0), (results, 1), (log, 2)):
        os.dup2(descriptor, stream)
    if request["folder"] is not None:
        os.chdir(request["folder"])
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["slow_disk"]:
        flush = os.fsync
        os.fsync = lambda descriptor: (time.sleep(request["slow_disk"]), flush(descriptor))[1]


if __name__ == "__main__":
    _serve(sys.stdin)
