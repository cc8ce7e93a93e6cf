from pathlib import Path

import pytest

from efficient_mae.demo import DemoConfig, demo


@pytest.mark.slow
def test_something_is_learned_in_five_minutes(tmp_path: Path):
    result = demo(DemoConfig(out=str(tmp_path / "demo")))
    assert result.accuracy.trained > result.accuracy.untrained + 0.05
    assert Path(result.report).stat().st_size > 100_000
    assert list((tmp_path / "demo" / "figures").glob("panel-*.png"))
