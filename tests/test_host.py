"""A program that uses the package as a library finds its own settings as it left them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host import CALLS


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each call the settings that it changed, in one program of its own."""
    folder = tmp_path_factory.mktemp("host")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
    program = [sys.executable, "-m", "tests.host", str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("call", CALLS)
def test_nothing_of_the_host_is_changed_by(call: str, changed: dict[str, list[str]]):
    assert changed[call] == []
