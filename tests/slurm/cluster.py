"""A Slurm of one's own: controller, node and munge on this machine, heard on its loopback alone.

Everything it writes lies in one folder, and its key, sockets and ports are its own, so a Slurm that this machine
belongs to is not disturbed. To look at it by hand: `python -m tests.slurm.cluster sinfo`, or `... bash`, as root.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
# A requeued job waits as long as a step's permission to start holds; Slurm's own are 120 seconds.
REQUEUE_SECONDS = 10
GROUPS = Path("/sys/fs/cgroup")
# The node's name is also the address by which processes find each other, and that of its control groups.
NODE = "localhost"

_CONFIGURATION = """
ClusterName=emae
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_seconds}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/{tracking}
TaskPlugin=task/{task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SchedulerParameters=sched_interval=5
{sampling}
# From SIGTERM to SIGKILL: Slurm's own half a minute may be too short for a step and a checkpoint of a busy machine.
KillWait=120
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
# As many processors and as much memory as the tests ask for, whatever this machine has.
SlurmdParameters=config_overrides
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000
PartitionName=all Nodes=ALL Default=YES
"""
_GROUP_CONFIGURATION = f"""
CgroupPlugin=cgroup/v1
CgroupMountpoint={GROUPS}
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
"""


def missing(tracking: str = "linuxproc") -> str | None:
    """What this machine lacks; None for nothing.

    Args:
        tracking: as for :func:`slurm_cluster`.
    """
    if os.geteuid():
        return "Slurm's node and controller are started by root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    if tracking == "cgroup":
        if not all(os.access(GROUPS / name / "tasks", os.W_OK) for name in ("freezer", "memory")):
            return "no control groups of version 1 that could be written"
        if _groups():
            return f"{_groups()[0]} is another's, or was left by a test that was killed"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _groups() -> list[Path]:
    """The control groups that Slurm makes for a node of this name."""
    return [folder for folder in GROUPS.glob(f"*/slurm_{NODE}") if folder.is_dir()]


class Cluster:
    """Slurm that runs.

    Args:
        folder: its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def ask(self, *command: str, check: bool = True, environment: dict[str, str] | None = None) -> str:
        """What a command of Slurm's answers."""
        done = subprocess.run(
            command, env=environment or self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def said(self) -> str:
        """The end of what each daemon has said."""
        return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in sorted(self.folder.glob("*.log")))

    def processes(self, *variables: str) -> dict[int, str]:
        """All that belong to this Slurm, by what each inherits from it; their command lines.

        Args:
            variables: `NAME=VALUE` that they must have inherited besides.
        """
        marks = {variable.encode() for variable in (f"SLURM_CONF={self.folder}/slurm.conf", *variables)}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile
                if marks <= set((process / "environ").read_bytes().split(b"\0")):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@contextmanager
def slurm_cluster(tracking: str = "linuxproc") -> Iterator[Cluster]:
    """Slurm, ready for jobs; within. Afterwards no process, file or control group of it is there.

    Args:
        tracking: how it knows a job's processes and holds them to their memory: `linuxproc`, which looks now and
            then, or `cgroup`, by the kernel's control groups.

    Raises:
        TimeoutError: something doesn't start; with what it said.
        AssertionError: a process had to be killed that should have ended.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-") as temporary:
        folder, by_groups = Path(temporary), tracking == "cgroup"
        cluster = Cluster(folder)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        configuration = _CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], folder=folder, node=NODE, requeue_seconds=REQUEUE_SECONDS,
            controller_port=free_port(), node_port=free_port(), tracking=tracking,
            task="cgroup" if by_groups else "none",
            sampling="" if by_groups else "JobAcctGatherParams=OverMemoryKill,NoShared",
        )  # fmt: skip
        (folder / "slurm.conf").write_text(configuration)
        (folder / "cgroup.conf").write_text(_GROUP_CONFIGURATION)
        munge = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "said", "seed-file": "seed"}
        files = [f"--{option}={folder}/munge.{name}" for option, name in munge.items()]
        daemons = []
        try:
            # --force: the folder's parents may be open to others.
            daemons.append(_start(cluster, "munged", "--foreground", "--force", *files))
            _await(cluster, "munged", (folder / "munge.socket").exists)
            daemons += [_start(cluster, "slurmctld", "-D"), _start(cluster, "slurmd", "-D", "-N", NODE)]
            _await(cluster, "the node", lambda: cluster.ask("sinfo", "-h", "-o", "%T", check=False) == "idle")
            yield cluster
        finally:
            left = _end(cluster, daemons)
            if by_groups:
                _remove_groups()
    assert not left, left


def _start(cluster: Cluster, name: str, *arguments: str) -> subprocess.Popen:
    with (cluster.folder / f"{name}.log").open("wb") as log:
        # A session of its own: Ctrl-C is for the tests, which then end it in its turn.
        return subprocess.Popen(
            [shutil.which(name, path=_path()) or name, *arguments], env=cluster.environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _await(cluster: Cluster, what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready; {cluster.said()}")
        time.sleep(0.1)


def _end(cluster: Cluster, daemons: list[subprocess.Popen]) -> dict[int, str]:
    """End jobs, then daemons, the last first; what didn't and was killed."""
    with suppress(OSError, subprocess.SubprocessError):  # TimeoutError is an OSError
        cluster.ask("scancel", "--user=root", check=False)
        # A job that hears of it saves first.
        _await(cluster, "jobs", lambda: not cluster.ask("squeue", "--noheader", check=False), 180)
    for daemon in reversed(daemons):
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(30)
    left = cluster.processes()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for daemon in daemons:
        daemon.wait(30)
    return left


def _remove_groups() -> None:
    for group in _groups():
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()


if __name__ == "__main__":
    if lacks := missing():
        sys.exit(lacks)
    with slurm_cluster() as slurm:
        sys.exit(subprocess.run(sys.argv[1:], env=slurm.environment, check=False).returncode)
