"""docs/reliability.md names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.findall(r"`(tests/[^`]*?\.py)::([^`]*)`", PAGE.read_text())


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_tests_exist(file: str):
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for named, name in NAMED if named == file} <= functions


def test_every_row_names_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    faults = [row for row in rows if not re.match(r"\|(-+\|)+$|\| fault \| what happens \| test \|$", row)]
    assert len(faults) > 30
    assert not [row for row in faults if not re.search(r"`tests/\w+[\w/]*\.py::test_\w+`", row.split(" | ")[-1])]
    assert not [row for row in faults if row.count(" | ") != 2]


def test_the_readme_leads_there():
    assert f"(docs/{PAGE.name})" in (ROOT / "README.md").read_text()
