"""Where the places of a proposal lie on a pyramid's maps, by maps whose values say where they are."""

import pytest
import torch

from efficient_mae.tasks.detect.pooling import AlignedPool

STRIDES = (4, 8, 16, 32)


def positions(side: int) -> dict[str, torch.Tensor]:
    """Two images of `side` x `side` pixels: a level's values are x and y of each place's middle, and its stride."""
    maps = {}
    for number, stride in enumerate((*STRIDES, 64)):
        middles = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        one = torch.stack([x, y, torch.full_like(x, stride)])
        maps["pool" if stride == 64 else str(number)] = torch.stack([one, one + 10_000])
    return maps


@pytest.mark.parametrize(
    ("box", "stride"),
    [
        ((100.0, 120.0, 163.5, 150.25), 4),
        ((101.0, 90.0, 230.0, 200.0), 8),
        ((100.0, 100.0, 324.0, 324.0), 16),
        ((40.0, 60.0, 500.0, 520.0), 32),
    ],
)
def test_a_place_has_the_mean_of_where_it_lies(box: tuple[float, ...], stride: int):
    left, top, right, bottom = box
    pooled = AlignedPool(7, STRIDES)(positions(640), [torch.zeros(0, 4), torch.tensor([box])], [(640, 640)] * 2)
    assert pooled.shape == (1, 3, 7, 7)
    middles = (torch.arange(7) + 0.5) / 7
    x, y = left + middles * (right - left), top + middles * (bottom - top)
    torch.testing.assert_close(pooled[0, 0] - 10_000, x.expand(7, 7), atol=0.02, rtol=0)
    torch.testing.assert_close(pooled[0, 1] - 10_000, y[:, None].expand(7, 7), atol=0.02, rtol=0)
    torch.testing.assert_close(pooled[0, 2] - 10_000, torch.full((7, 7), float(stride)), atol=0.02, rtol=0)


def test_proposals_keep_their_order_over_images_and_levels():
    boxes = [torch.tensor([[0.0, 0, 400, 400], [10, 10, 50, 50]]), torch.tensor([[20.0, 20, 60, 60]])]
    pooled = AlignedPool(1, STRIDES)(positions(640), boxes, [(640, 640)] * 2)[:, :, 0, 0]
    expected = torch.tensor([[200.0, 200, 16], [30, 30, 4], [10_040, 10_040, 10_004]])
    torch.testing.assert_close(pooled, expected, atol=0.02, rtol=0)
