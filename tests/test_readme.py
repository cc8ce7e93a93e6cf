"""The README's tables are those of the results."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["step", "jpeg"])
def test_tables_are_those_of_the_results(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))["TABLES"]
    assert tables[name]() in (ROOT / "README.md").read_text(), "run benchmarks/readme_tables.py"
