"""Two hosts, where they are allowed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tasks.conftest import alone, images

from .network import Network, two_hosts

__all__ = ["alone", "images"]


@pytest.fixture(scope="session", autouse=True)
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips what needs network namespaces where there can't be any."""
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("ip", "unshare", "mount")):
        pytest.skip("two hosts need root, iproute2 and util-linux")
    try:
        with two_hosts(tmp_path_factory.mktemp("hosts")) as network:
            started = network.hosts[0].start(["true"], dict(os.environ))
            status = started.wait(30)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    if status:
        pytest.skip(f"network namespaces are not allowed here: {started.said.strip()}")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two hosts at a switch."""
    folder = tmp_path / "hosts"
    folder.mkdir()
    with two_hosts(folder) as network:
        yield network
