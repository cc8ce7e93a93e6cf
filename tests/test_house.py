"""The house rules: imports run downward, the linter, the formatter and the type checker are content."""

import ast
import importlib.util
import re
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


def test_what_is_cited_is_here():
    files = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    cited = {(path, doc) for path in files for doc in re.findall(r"[\w./-]+/[\w-]+\.md\b", path.read_text())}
    assert {doc for _, doc in cited} >= {"docs/readings.md"}
    assert not {(path.name, doc) for path, doc in cited if not (ROOT / doc).is_file()}


def test_what_is_imported_of_ours_is_there():
    """pyright sees `src` alone; a script that is run once a year would tell of a name that moved then."""
    files = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    earlier = ROOT / "tests" / "tasks" / "earlier" / "make.py"  # is run with the code of another version
    wanted = {
        (node.module, name.name)
        for path in files
        if path != earlier
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efficient_mae")
        for name in node.names
    }
    assert len(wanted) > 200
    for module, name in sorted(wanted):
        held = importlib.import_module(module)
        assert hasattr(held, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)


def test_no_file_is_too_long():
    long = {
        path.name: count
        for path in (ROOT / "src").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 330
    }
    assert not long
