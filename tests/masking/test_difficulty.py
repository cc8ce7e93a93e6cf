import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.spatial import cKDTree

import efficient_mae as emae

METRICS = ["p2dist", "p2dist_exact", "visible_neighbours", "inverse_distance_sum", "nearest_patch"]


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return emae.random_masking(2000, (14, 14), 0.85, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("metric", "kept"), [("visible_neighbours", 114), ("inverse_distance_sum", 159), ("nearest_patch", 167)]
)
def test_patches_kept_in_table_5(mask: torch.Tensor, metric: str, kept: int):
    predicted = emae.select_targets(emae.difficulty(mask, metric=metric), beta=None)
    assert predicted.sum().item() / len(mask) == pytest.approx(kept, abs=0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_exactly_where_visible(mask: torch.Tensor, metric: str):
    distance = emae.difficulty(mask[:50], metric=metric)
    assert torch.equal(distance > 0, mask[:50])


def test_nearest_patch_is_the_nearest_centre(mask: torch.Tensor):
    one = mask[0].numpy()
    visible = np.argwhere(~one) * 16
    expected, _ = cKDTree(visible).query(np.argwhere(one) * 16)
    ours = emae.difficulty(mask[:1], metric="nearest_patch")[0].numpy()[one]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_neighbourhood_metrics_by_convolution(mask: torch.Tensor):
    one = mask[0].numpy()
    visible = (~one).astype(float)
    steps = np.arange(-2, 3)
    distance = 16 * np.hypot(steps[:, None], steps[None])
    kernels = {
        "visible_neighbours": np.ones((3, 3)),
        "inverse_distance_sum": np.divide(1, distance, out=np.zeros((5, 5)), where=distance > 0),
    }
    for metric, kernel in kernels.items():
        with np.errstate(divide="ignore"):
            expected = 1 / convolve(visible, kernel, mode="constant")
        ours = emae.difficulty(mask[:1], metric=metric)[0].numpy()
        np.testing.assert_allclose(ours[one], expected[one], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_the_same_whatever_surrounds_it(mask: torch.Tensor, metric: str):
    expected = emae.difficulty(mask[:20], metric=metric)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(emae.difficulty(mask[:20], metric=metric), expected)
    with torch.device("meta"):
        assert emae.difficulty(mask[:20], metric=metric).device.type == "cpu"
    assert expected.dtype == torch.float32 and emae.difficulty(mask[:0], metric=metric).shape == (0, 14, 14)


def test_an_unknown_metric_names_the_known(mask: torch.Tensor):
    with pytest.raises(ValueError, match=r"metric='p3dist'.*p2dist, p2dist_exact"):
        emae.difficulty(mask, metric="p3dist")
