"""The report's figures: drawn from little as from much, and safe inside a page."""

import base64
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from efficient_mae.errors import InputError
from efficient_mae.pictures import png
from efficient_mae.report.curves import cost_bars, data_uri, difficulty_figure, loss_curve, svg_data_uri
from efficient_mae.report.difficulty_profile import DifficultyProfile


def rows(number: int) -> list[dict]:
    return [dict(step=n + 1, epoch=(n + 1) / 10, loss=math.exp(-n / 50), lr=1e-3 * n / number) for n in range(number)]


def lines(ax) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in ax.get_lines()]


def decoded(uri: str) -> bytes:
    head, content = uri.split(",", 1)
    assert head.startswith("data:image/") and head.endswith(";base64")
    return base64.b64decode(content, validate=True)


@pytest.mark.parametrize("number", [1, 2, 39, 40, 20_000])
def test_a_loss_curve_of_any_length(number: int):
    figure = loss_curve(rows(number))
    above, below = figure.axes
    assert lines(above)[-1][-1] == pytest.approx(math.exp(-(number - 1) / 50))
    assert len(lines(below)[0]) == min(number, 1500)
    content = decoded(svg_data_uri(figure))
    assert ET.fromstring(content).tag.endswith("svg")
    assert len(content) < 400_000


def test_a_loss_that_became_nan_still_has_a_curve():
    logged = rows(60)
    logged[-1]["loss"] = float("nan")
    svg_data_uri(loss_curve(logged))


def test_no_row_is_an_error():
    with pytest.raises(InputError, match="no logged step"):
        loss_curve([])


def profile(edges: np.ndarray) -> DifficultyProfile:
    loss = np.array([0.4, 0.6, 0.8, 2.0])
    return DifficultyProfile(edges, np.array([900, 500, 200, 3]), loss, loss * 0.9, 0.02, 0.001, 10, 2)


def test_fig_2_draws_what_is_known():
    edges = np.linspace(6.0, 46.0, 5)
    patches = {"mask ratio 0.75": np.array([90.0, 40, 10, 1]), "mask ratio 0.85": np.array([60.0, 60, 30, 9])}
    figure = difficulty_figure(edges, patches, profile(edges), beta=26.0)
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == [90, 40, 10, 1, 60, 60, 30, 9]
    # Three patches make no mean.
    np.testing.assert_array_equal(lines(below)[0], [0.4, 0.6, 0.8, np.nan])
    np.testing.assert_allclose(lines(below)[1], [0.36, 0.54, 0.72, np.nan])
    assert [line.get_label() for line in above.get_lines()] == ["beta, 26 px"]
    upper_alone = difficulty_figure(edges, {"mask ratio 0.75": patches["mask ratio 0.75"]}, None, beta=None)
    assert len(upper_alone.axes) == 1 and not upper_alone.axes[0].get_lines()


def test_cost_bars_are_as_long_as_the_costs():
    (ax,) = cost_bars(7.2, 9.6, "this run").axes
    assert [bar.get_width() for bar in ax.patches] == [9.6, 7.2]  # pyright: ignore[reportAttributeAccessIssue]
    assert [text.get_text() for text in ax.texts] == ["9.6", "7.2  (75%)"]
    assert decoded(data_uri(png(cost_bars(1.0, 1.0, "this run"), dpi=50), "image/png"))[:4] == b"\x89PNG"
