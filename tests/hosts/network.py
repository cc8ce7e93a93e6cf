"""Two hosts at a switch: network namespaces, each with a name and an address of its own and one file system.

Nothing of them is seen outside: addresses, host names and /etc/hosts are theirs alone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# Called by `ip netns exec`, which gives each command mounts of its own.
_ENTER = 'echo "$0" > /proc/sys/kernel/hostname && mount --bind "$1" /etc/hosts && shift && exec "$@"'


@dataclass
class Started:
    """A command that was started on a host."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout: float) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.said}") from None

    @property
    def said(self) -> str:
        """What it has said so far, on stdout and stderr."""
        return self.log.read_text()


@dataclass
class Host:
    """A network namespace.

    Attributes:
        name: of the host, by which the others find it.
        namespace: its name for `ip netns`.
        names: the file that is its /etc/hosts.
    """

    name: str
    namespace: str
    names: Path
    _started: list[Started] = field(default_factory=list)

    def start(self, command: list[str], environment: dict[str, str]) -> Started:
        """Start a command here."""
        log = self.names.with_suffix(f".{len(self._started)}.log")
        entered = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", _ENTER]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*entered, self.name, self.names, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
            )
        self._started.append(Started(process, log))
        return self._started[-1]

    def pids(self) -> list[int]:
        """Every process that is here, whoever its parent is."""
        for started in self._started:
            started.process.poll()  # lets go of one that has ended
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def link(self, state: str) -> None:
        """Set its network device `up` or `down`."""
        ip("-n", self.namespace, "link", "set", "eth0", state)

    def is_named(self, address: str) -> None:
        """Let its own name stand for this address, on this host alone."""
        others = [line for line in self.names.read_text().splitlines() if line.split()[1] != self.name]
        self.names.write_text("\n".join([*others, f"{address} {self.name}", ""]))

    def kill(self) -> None:
        """SIGKILL to all that is here, until nothing is."""
        deadline = time.monotonic() + 30
        while pids := self.pids():
            assert time.monotonic() < deadline, pids
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


@dataclass(frozen=True)
class Network:
    """Two hosts and what joins them."""

    hosts: tuple[Host, Host]
    switch: str

    def forward(self, state: str) -> None:
        """Set the switch `up` or `down`: down, it drops what it gets, and no host is told."""
        ip("-n", self.switch, "link", "set", "br0", state)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Network]:
    """Two hosts, `first` and `second`; in the end all that runs on them is killed, and they are removed.

    Args:
        folder: for their files: what their commands say.
    """
    prefix = f"emae-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    switch = f"{prefix}-switch"
    addresses = {"first": "10.77.0.1", "second": "10.77.0.2"}
    hosts = []
    made = []
    try:
        made.append(switch)
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for name, address in addresses.items():
            namespace = f"{prefix}-{name}"
            made.append(namespace)
            ip("netns", "add", namespace)
            ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("-n", switch, "link", "set", name, "master", "br0", "up")
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", namespace, "link", "set", device, "up")
            names = folder / name
            known = {"localhost": "127.0.0.1"} | addresses
            names.write_text("".join(f"{where} {known_as}\n" for known_as, where in known.items()))
            hosts.append(Host(name, namespace, names))
        yield Network((hosts[0], hosts[1]), switch)
    finally:
        for host in hosts:
            host.kill()
        for namespace in made:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", namespace)


def ip(*arguments: str) -> str:
    """What `ip` says."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
