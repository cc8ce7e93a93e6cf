"""The README's tables are those of the results."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["step", "gpu", "peers", "jpeg"])
def test_tables_are_those_of_the_results(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))["TABLES"]
    assert tables[name]() in (ROOT / "README.md").read_text(), "run benchmarks/readme_tables.py"


def test_tables_of_scaling_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    tables = runpy.run_path(str(ROOT / "benchmarks" / "scaling_tables.py"))["tables"]
    result = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    page = (ROOT / "docs" / "scaling.md").read_text()
    found = dict(tables(result["counted"], result["measured"]["decoded_images_a_second_on_one_core"]))
    assert len(found) == 6
    for name, content in found.items():
        assert content in page, f"{name}: run benchmarks/scaling.py"


def test_each_number_beside_peers_is_that_of_the_results():
    """Read from the page, cell by cell: the method in its row, the precision and batch in its column."""
    lines = (ROOT / "README.md").read_text().split("<!-- peers:")[1].split("<!-- /peers -->")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    head, (_, *rows) = cells[0], cells[1:]
    assert head[0] == "images/s" and len(head) == 3
    assert len(rows) == len({row[0] for row in rows}) == 5
    for column, title in list(enumerate(head))[1:]:
        precision, batch_size = title.split(", batch ")
        result = json.loads((ROOT / "benchmarks" / "results" / f"peers_base_{precision}.json").read_text())
        assert (result["model"], result["precision"]) == ("mae_vit_base_patch16", precision)
        assert result["batch_size"] == int(batch_size)
        rates = {method["name"]: method["images_per_second"] for method in result["methods"]}
        for row in rows:
            assert row[column] == format(rates[row[0].removeprefix("own ")], ".2f"), (row[0], title)
        others = {name for name in rates if not name.startswith(("MAE ", "Efficient MAE "))}
        assert others <= {row[0] for row in rows}, "a peer that was timed is left out"
