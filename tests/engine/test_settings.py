"""A global batch that cannot be cut, and what the refusal proposes."""

import re

import pytest

from efficient_mae.engine.settings import check_division


@pytest.mark.parametrize(
    ("batch_size", "accum_iter", "world_size", "num_samples", "what"),
    [
        (250, 1, 8, 10_000, "1 x 8 processes; take batch_size 248 or 256"),
        (256, 3, 8, 10_000, "3 x 8 processes; take batch_size 240 or 264, or accum_iter 2"),
        (4096, 6, 64, 4096, "6 x 64 processes; take batch_size 3840, or accum_iter 4"),
        (4, 1, 6, 10, "1 x 6 processes; take batch_size 6"),
        (4, 2, 6, 10, "2 x 6 processes; take fewer processes"),
        (8, 1, 8, 5, "8 processes for 5 images: start at most as many"),
        (8, 1, 2, 5, "batch_size=8: must be at least 1 and at most the 5 images"),
        (0, 1, 1, 5, "batch_size=0: must be at least 1"),
    ],
)
def test_what_cannot_be_divided(batch_size: int, accum_iter: int, world_size: int, num_samples: int, what: str):
    with pytest.raises(ValueError, match=what) as refusal:
        check_division(batch_size, accum_iter, world_size, num_samples)
    for size in re.findall(r"batch_size (\d+)(?: or (\d+))?", str(refusal.value)):
        for proposed in filter(None, size):
            check_division(int(proposed), accum_iter, world_size, num_samples)
    for proposed in re.findall(r"accum_iter (\d+)", str(refusal.value)):
        check_division(batch_size, int(proposed), world_size, num_samples)


def test_what_can():
    check_division(256, 4, 8, 256)
