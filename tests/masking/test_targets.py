import math

import pytest
import torch

import efficient_mae as emae


def test_beta_scales_with_the_patch_size():
    mask = emae.random_masking(500, (16, 16), 0.85, torch.Generator().manual_seed(0))
    kept = {size: emae.select_targets(emae.p2dist(mask, size), size, beta=26.0) for size in (14, 16)}
    counts = {size: predicted.sum().item() / len(mask) for size, predicted in kept.items()}
    assert counts[14] == pytest.approx(counts[16], rel=0.01)
    unscaled = emae.select_targets(emae.p2dist(mask, 14), patch_size=16, beta=26.0)
    assert unscaled.sum().item() / len(mask) > 1.02 * counts[16]


def test_thresholds_include_beta_and_exclude_visible_and_infinite():
    d = torch.tensor([[[0.0, 5.0], [26.0, math.inf]]])
    assert emae.select_targets(d, beta=26.0).tolist() == [[[False, True], [True, False]]]
    assert emae.select_targets(d, beta=25.9).tolist() == [[[False, True], [False, False]]]
    assert emae.select_targets(d, beta=None).tolist() == [[[False, True], [True, False]]]


def test_weights():
    d = torch.tensor([0.0, 4.0, 9.0, math.inf])
    torch.testing.assert_close(emae.flatten_weights(d, gamma=0.5), torch.tensor([0, 1 / 2, 1 / 3, 0]))
    assert emae.flatten_weights(d, gamma=0.0).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: emae.select_targets(torch.ones(1, 1, 1), beta=0.0),
        lambda: emae.flatten_weights(torch.ones(1), gamma=-0.1),
        lambda: emae.flatten_weights(torch.ones(1), gamma=math.nan),
    ],
)
def test_values_that_cannot_be(call):
    with pytest.raises(ValueError, match=r"beta=0.0|gamma=(-0.1|nan)"):
        call()
