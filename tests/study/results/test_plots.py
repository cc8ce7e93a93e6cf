"""The studies' pictures, looked at as images."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficient_mae.study.results.plots import draw_accuracies

LABELS = ("MAE, 0.75", "Efficient MAE, 0.85, cross decoder, same multiplications")


def row(number: int, judges: tuple[str, ...], published: bool, compared: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"label": LABELS[number], "paper": {"top1": 84.0 + number} if published else {}}
    found["measured"] = {judge: {"mean": 0.7 + 0.01 * number, "half_width": 0.01} for judge in judges}
    if compared and number:
        found["difference"] = {"mean": 0.01, "low": -0.005, "high": 0.02}
    return found


@pytest.mark.parametrize("judges", [(), ("probe",), ("probe", "top1", "linear_probe", "knn")], ids=len)
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("compared", [False, True])
def test_nothing_is_cut_off(judges: tuple[str, ...], published: bool, compared: bool, tmp_path: Path):
    rows = [row(number, judges, published, compared) for number in range(2)]
    draw_accuracies(rows, "What Efficient MAE learns for what MAE costs (preset photographs)", tmp_path / "f.png")
    pixels = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    # Grid lines may end at an axis; ink may not run into a border.
    for name, border in {
        "left": pixels[:, 0],
        "right": pixels[:, -1],
        "top": pixels[0],
        "bottom": pixels[-1],
    }.items():
        assert border.min() > 200, name


def test_a_difference_has_its_point(tmp_path: Path):
    """The same rows, but for the mean of the second's difference, are drawn alike but for a point."""
    pictures = []
    for mean in (0.0, 0.005, 0.015):
        rows = [row(number, ("probe",), False, True) for number in range(2)]
        rows[1]["difference"]["mean"] = mean
        draw_accuracies(rows, "t", tmp_path / "f.png")
        picture = np.asarray(Image.open(tmp_path / "f.png").convert("RGB")).astype(int)
        pictures.append((picture == (0x24, 0x58, 0xD3)).all(axis=-1))
    moves = []
    for before, after in pairwise(pictures):
        (old_y, old_x), (new_y, new_x) = (np.argwhere(one).mean(axis=0) for one in (before & ~after, after & ~before))
        assert old_y == pytest.approx(new_y, abs=1)
        moves.append(new_x - old_x)
    assert moves[0] > 10 and moves[1] == pytest.approx(2 * moves[0], abs=3)
