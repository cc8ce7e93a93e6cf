import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import efficient_mae as emae
from efficient_mae.masking import mask_from_noise, num_visible


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.85, 29), (0.90, 19), (0.95, 9)])
def test_the_notes_visible_counts(ratio: float, visible: int):
    mask = emae.random_masking(5, (14, 14), ratio, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool and mask.shape == (5, 14, 14)
    assert ((~mask).sum(dim=(1, 2)) == visible).all()


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_every_image_keeps_the_same_number(height: int, width: int, ratio: float, seed: int):
    patches = height * width
    visible = int(patches * (1 - ratio))
    if not 0 < visible < patches:
        with pytest.raises(ValueError, match="mask_ratio"):
            emae.random_masking(3, (height, width), ratio)
        return
    mask = emae.random_masking(3, (height, width), ratio, torch.Generator().manual_seed(seed))
    assert ((~mask).sum(dim=(1, 2)) == visible).all()


def test_masks_are_uniform():
    mask = emae.random_masking(20_000, (4, 5), 0.75, torch.Generator().manual_seed(1))
    share = mask.float().mean(dim=0)
    # Standard error of each patch's share is 0.003; five of them.
    assert (share - 0.75).abs().max() < 0.0155


def test_equal_noise_is_resolved_by_index():
    mask = mask_from_noise(torch.zeros(1, 6), (2, 3), 0.5)
    assert mask.tolist() == [[[False, False, False], [True, True, True]]]


@pytest.mark.parametrize("patches", [2, 10, 16, 49, 196, 256, 399, 4096, 40_000])
def test_the_ratio_that_is_advised_works(patches: int):
    with pytest.raises(ValueError, match="leaves none") as error:
        num_visible(patches, 0.999999)
    advised = float(str(error.value).split("at most ")[1].split(",")[0])
    assert 1 <= num_visible(patches, advised) <= 1 + patches // 5_000


def test_the_generator_decides():
    draws = [emae.random_masking(2, (7, 7), 0.8, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("ratio", "what"),
    [(0.0, "greater than 0 and less than 1"), (1.0, "less than 1"), (0.99, "visible"), (1e-17, "masks none")],
)
def test_ratios_that_leave_nothing(ratio: float, what: str):
    with pytest.raises(ValueError, match=what):
        num_visible(4, ratio)
