"""`emae bench data` reports what the loader did, on data whose size is known."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from efficient_mae.bench.data import BenchDataConfig, bench_data, show_bench_data
from efficient_mae.errors import InputError

TINY = {
    "model": "mae_vit_tiny_patch4", "img_size": 16, "depth": 1, "decoder_depth": 1, "decoder_embed_dim": 32,
    "precision": "fp32", "device": "cpu", "seconds": 0.2, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.{('jpg', 'png')[number % 2]}")
    (path / "damaged.jpg").write_bytes(b"no image")
    return path


def test_figures(folder: Path):
    sizes = [path.stat().st_size for path in folder.iterdir() if "damaged" not in path.name]
    result = bench_data(
        BenchDataConfig(data=str(folder), num_workers=(0, 1), repeats=2, step_images_per_second=1e9, **TINY)
    )
    json.dumps(result.plain())
    assert result.images == 13 and not result.step_measured
    assert result.bytes_per_image == round(sum(sizes) / len(sizes))
    assert [row.num_workers for row in result.loaders] == [0, 1]
    for row in result.loaders:
        speed = row.images_per_second
        assert speed > 0 and row.per_worker == row.per_core == speed
        assert row.megabytes_per_second == pytest.approx(speed / 2 * result.bytes_per_image / 1e6, rel=0.05)
        assert row.wait_share == pytest.approx(1, abs=1e-3)


def test_a_slow_step_never_waits_and_is_measured_if_not_given():
    config = {"data": "fashion-mnist-sample", "in_chans": 1, "num_workers": (0,), **TINY}
    slow = bench_data(BenchDataConfig(step_images_per_second=1e-3, **config))
    assert slow.loaders[0].wait_share == 0 and slow.bytes_per_image == 0
    measured = bench_data(BenchDataConfig(**config))
    assert measured.step_measured and measured.step_images_per_second > 0
    text = io.StringIO()
    show_bench_data(measured, Console(file=text, width=100))
    assert "in memory" in text.getvalue() and "measured here" in text.getvalue()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seconds": 0}, "seconds=0"),
        ({"num_workers": (-1,)}, r"num_workers\[0\]=-1"),
        ({"num_workers": ()}, r"num_workers=\[\]"),
        ({"step_images_per_second": 0}, "step_images_per_second=0"),
        ({"repeats": 3}, "repeats=3"),
        ({"batch_size": 64}, "global batch of 64"),
    ],
)
def test_settings_that_cannot_work(folder: Path, setting: dict, message: str):
    with pytest.raises(InputError, match=message):
        bench_data(BenchDataConfig(**({"data": str(folder), "num_workers": (0,), **TINY} | setting)))
