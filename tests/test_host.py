"""A program that uses the package as a library finds its own settings as it left them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host import CALLS

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one program found that made all calls."""
    folder = tmp_path_factory.mktemp("host")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
    program = [sys.executable, "-m", "tests.host", str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
@pytest.mark.parametrize("call", CALLS)
def test_nothing_of_the_host_is_changed_by(call: str, found: dict):
    assert found["changed"][call] == []


@linux
@pytest.mark.parametrize(
    ("command", "keeps", "products"),
    [("pretrain", True, None), ("finetune", True, None), ("bench step", True, "8192"), ("knn", False, None)],
)
def test_the_command_line_prepares_its_own_process(command: str, keeps: bool, products: str | None, found: dict):
    """Whether what is freed is kept, and how many compiled products are."""
    assert found["commands"][command] == [keeps, products]
