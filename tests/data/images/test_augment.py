import random

import numpy as np
import pytest
import torch
from PIL import Image

from efficient_mae.data import AugmentTransform, PretrainTransform, Reading, sample_rng

RAND = "rand-m9-mstd0.5-inc1"


@pytest.fixture
def photo() -> Image.Image:
    y, x = np.mgrid[:50, :70]
    return Image.fromarray(np.stack([x * 3, y * 5, x + y], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_same_for_the_same_random_numbers_and_no_trace(photo: Image.Image, in_chans: int):
    transform = AugmentTransform((28, 28), Reading(in_chans), auto_augment=RAND)
    first = [transform(photo, sample_rng(0, 0, index, "crop")) for index in range(20)]
    python, legacy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    again = [transform(photo, sample_rng(0, 0, index, "crop")) for index in range(20)]
    assert all(map(torch.equal, first, again))
    assert first[0].shape == (in_chans, 28, 28) and first[0].dtype == torch.uint8
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), host)
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), legacy))  # noqa: NPY002
    assert not all(torch.equal(first[0], other) for other in first[1:])


def test_full_strength_is_survived(photo: Image.Image):
    # Posterize keeps 0 bits there, which Pillow 13 refuses.
    transform = AugmentTransform((28, 28), Reading(3), auto_augment="rand-m10-n6-p1-inc1")
    for index in range(100):
        transform(photo, sample_rng(0, 0, index, "crop"))


def test_without_randaugment_it_is_crop_and_flip(photo: Image.Image):
    plain, crop = (
        AugmentTransform((28, 28), Reading(4), scale=(0.3, 1.0)),
        PretrainTransform((28, 28), Reading(4), scale=(0.3, 1.0)),
    )
    assert torch.equal(plain(photo, sample_rng(0, 0, 1, "crop")), crop(photo, sample_rng(0, 0, 1, "crop")))


def test_what_timm_does_not_understand():
    for wrong in ("augmix-m3", "rand-x9", "", "rand-mfew-n2.5"):
        with pytest.raises(ValueError, match="auto_augment"):
            AugmentTransform((28, 28), Reading(3), auto_augment=wrong)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        AugmentTransform((28, 28), Reading(4), auto_augment=RAND)
