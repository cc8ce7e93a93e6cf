"""The house rules: imports run downward, the linter, the formatter and the type checker are content."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUFF = [sys.executable, "-m", "ruff"]


@pytest.mark.parametrize(
    "command",
    [
        [*RUFF, "check", "--quiet", "."],
        [*RUFF, "format", "--check", "--quiet", "."],
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
    ],
    ids=["lint", "format", "imports", "types"],
)
def test_rule(command: list[str]):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long():
    long = {
        path.name: count
        for path in (ROOT / "src").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 330
    }
    assert not long
