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


# Ends with status 2 before anything is computed; then how much is kept of what is freed, and oneDNN's setting.
COMMAND = """
import os, sys
from efficient_mae.cli import main
from tests.host import kept_addresses
assert main(sys.argv[1:]) == 2
print(kept_addresses(), os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
@pytest.mark.parametrize(
    ("command", "keeps", "products"),
    [
        ("pretrain --data absent --out run", True, "None"),
        ("finetune --data absent --out run --from scratch", True, "None"),
        ("bench step --model mae_vit_tiny_patch4 --img_size 16 --memory false", True, "8192"),
        ("knn --weights absent", False, "None"),
    ],
)
def test_the_command_line_prepares_its_own_process(command: str, keeps: bool, products: str):
    program = [sys.executable, "-c", COMMAND, *command.split(), "--device", "cpu"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    kept, found = done.stdout.split()
    assert (int(kept) >= 128) == keeps and found == products
