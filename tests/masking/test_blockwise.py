"""Masks of blocks, beside statistics of 20,000 masks that each method's published generator drew."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.ndimage import label

from efficient_mae.masking import blockwise_mask_from_noise, check_blocks, num_hidden

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "mask_statistics.safetensors")
GENERATORS = {
    "beit_75_min16": (75, 16, False),
    "slowfast_maskfeat_78_min15": (78, 15, False),
    "cae_official_75_min16": (75, 16, True),
    "cae_official_98_min16": (98, 16, True),
}
IMAGES = 10_000


def noise(images: int, patches: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=GENERATORS)
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    hidden, smallest, exact = GENERATORS[request.param]
    masks = blockwise_mask_from_noise(noise(IMAGES, 196), (14, 14), hidden, smallest, exact=exact)
    golden = {name.partition(".")[2]: value for name, value in GOLDEN.items() if name.startswith(request.param)}
    return masks.numpy(), golden


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Two histograms, of ours and of 20,000 masks, differ by no more than five standard errors in any bin."""
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    error = np.sqrt(np.maximum(theirs, 1e-4) * (1 / IMAGES + 1 / 20_000))
    assert (np.abs(ours - theirs) <= 5 * error).all()


def test_where_patches_are_hidden(drawn: tuple[np.ndarray, dict[str, np.ndarray]]):
    masks, golden = drawn
    # Standard error of a difference: at most 0.0036 of theirs, and 0.005 of ours; five of them. An upper bound of a
    # block's place that is too low by one leaves the last row and column at 0 instead of 0.13 to 0.2.
    assert np.abs(masks.mean(axis=0) - golden["probability"]).max() < 5 * 0.0062


def test_how_many_are_hidden(drawn: tuple[np.ndarray, dict[str, np.ndarray]]):
    masks, golden = drawn
    assert_alike(np.bincount(masks.sum(axis=(1, 2)), minlength=197), golden["count_histogram"])


def test_how_they_lie_together(drawn: tuple[np.ndarray, dict[str, np.ndarray]]):
    masks, golden = drawn
    inner = sum((np.diff(masks, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
    border = sum(side.sum(axis=1) for side in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]))
    for found, (mean, sd) in ((inner, golden["inner_edges_mean_sd"]), (border, golden["border_cells_mean_sd"])):
        assert found.mean() == pytest.approx(mean, abs=5 * sd * np.sqrt(1 / IMAGES + 1 / 20_000))
        assert found.std() == pytest.approx(sd, rel=0.05)
    components = [label(mask)[1] for mask in masks]
    assert_alike(np.bincount(components, minlength=16)[:16], golden["component_histogram"])


@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95), st.integers(1, 20), st.booleans(), st.integers(0, 99)
)
def test_any_grid_is_masked_or_refused(height: int, width: int, ratio: float, block: int, exact: bool, seed: int):
    patches = height * width
    try:
        hidden = num_hidden(patches, ratio)
        check_blocks((height, width), hidden, block)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    masks = blockwise_mask_from_noise(noise(4, patches, seed), (height, width), hidden, block, exact=exact)
    assert masks.dtype == torch.bool and masks.shape == (4, height, width)
    found = masks.sum(dim=(1, 2))
    assert (found == hidden).all() if exact else (found <= hidden).all()


def test_a_mask_follows_from_its_own_image_alone():
    given = noise(6, 196)
    whole = blockwise_mask_from_noise(given, (14, 14), 78, 15)
    alone = blockwise_mask_from_noise(given[4:5], (14, 14), 78, 15)
    assert torch.equal(whole[4:5], alone) and not torch.equal(whole[3], whole[4])
    given[4, 17] += 1e-6
    assert not torch.equal(blockwise_mask_from_noise(given[4:5], (14, 14), 78, 15), alone)


@pytest.mark.parametrize(
    ("ratio", "patches", "what"),
    [
        (0.0, 196, "mask_ratio=0.0: must be greater than 0 and less than 1"),
        (0.02, 16, "mask_ratio=0.02 hides none of 16 patches: take a larger one"),
        (0.98, 16, "mask_ratio=0.98 hides all of 16 patches: take a smaller one"),
    ],
)
def test_ratios_that_leave_nothing(ratio: float, patches: int, what: str):
    with pytest.raises(ValueError, match=what):
        num_hidden(patches, ratio)
    assert (num_hidden(196, 0.4), num_hidden(196, 0.5)) == (78, 98)


@pytest.mark.parametrize(
    ("grid", "hidden", "block", "what"),
    [
        ((4, 4), 6, 16, "smallest_block=16: a mask of 6 among 4 x 4 patches has no room .* take at most 6"),
        ((3, 20), 24, 21, "smallest_block=21: .* take at most 20"),
        ((1, 14), 6, 2, "a grid of 1 x 14 patches has no room for blocks: take smaller patches"),
        ((14, 14), 78, 0, "smallest_block=0: must be at least 1"),
        ((14, 14), 196, 16, "num_masked=196: must be less than the 196 patches"),
    ],
)
def test_blocks_that_do_not_fit(grid: tuple[int, int], hidden: int, block: int, what: str):
    with pytest.raises(ValueError, match=what):
        blockwise_mask_from_noise(noise(1, grid[0] * grid[1]), grid, hidden, block)


def test_noise_of_another_grid():
    with pytest.raises(ValueError, match="noise has 49 numbers an image, a 14 x 14 grid needs one a patch"):
        blockwise_mask_from_noise(noise(1, 49), (14, 14), 78, 15)
