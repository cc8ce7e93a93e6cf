from pathlib import Path

import pytest

from efficient_mae.demo import DemoConfig, demo


@pytest.mark.slow
def test_something_is_learned_in_five_minutes(tmp_path: Path):
    result = demo(DemoConfig(out=str(tmp_path / "demo")))
    assert result.accuracy.trained > result.accuracy.untrained + 0.05
    assert result.ridge.trained > max(result.ridge.untrained, result.ridge.raw_pixels)
    for run in ("photographs", "garments"):
        assert (tmp_path / "demo" / run / "report.html").stat().st_size > 100_000
        assert list((tmp_path / "demo" / run / "figures").glob("panel-*.png"))
