"""P2Dist, the Patch-wise Average Nearest Pixel Distance (Sec. 3.3): how hard a masked patch is.

The difficulty of a masked patch is the distance from its pixels to the nearest visible pixel, averaged over
the patch. :func:`p2dist_exact` computes that (Eq. 1); :func:`p2dist` is the paper's Algorithm 1, which looks at
no more than k points of nearby visible patches and is what training uses.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.ranges import PositiveInt, check_range

# The patch size of Algorithm 1's pixels, and of the paper's beta.
_PATCH_SIZE = 16
# Pixels and patches whose distances are worked on at a time, so that they stay in cache.
_CHUNK_PIXELS = 1 << 18
_CHUNK_PATCHES = 1 << 13


def p2dist(mask: Bool[Tensor, "B H W"], patch_size: int = 16, k: int = 8) -> Float[Tensor, "B H W"]:
    """P2Dist by Algorithm 1.

    Every visible patch offers nine points: its centre, its corners and the middles of its edges. Of all those
    points, S is the k nearest to the masked patch's centre, and the difficulty is the mean, over the masked
    patch's pixels, of the distance to the nearest point of S.

    All the points lie on the lattice of half patches, so seen from any masked patch they are the same few
    offsets in the same order of distance. S is found by walking that order, counting how many visible patches
    offer each lattice point, until k are found. Points at equal distance are taken in row-major order, so the
    result is the same on every device.

    Args:
        mask: True = masked; each image needs a visible and a masked patch.
        patch_size: P, in pixels. Algorithm 1's pixels sit at -P/2 ... P/2 - 1 from the patch's centre, half a pixel
            off: weights left and right differ by 6 % at P = 16, by 28 % at 4. Difficulty follows from the grid's
            geometry alone, so the value at P is the one at 16 times P / 16.
        k: number of points in S, counted once for each patch that offers them; where fewer exist, all are taken.

    Returns:
        float32, pixels; 0 where visible.

    Raises:
        InputError: an image has no visible or no masked patch, or an argument is not positive.

    Source: Algorithm 1; the positions of points and pixels as in `docs/readings.md`, where they reproduce Table 8.
    """
    check_mask(mask)
    check_range("k", k, PositiveInt)
    check_range("patch_size", patch_size, PositiveInt)
    images = max(1, _CHUNK_PATCHES // (mask.shape[1] * mask.shape[2]))
    return torch.cat([_algorithm_1(chunk, k) for chunk in mask.split(images)]) * (patch_size / _PATCH_SIZE)


def _algorithm_1(mask: Bool[Tensor, "B H W"], k: int) -> Float[Tensor, "B H W"]:
    """At patch size 16."""
    offered = _offered_points(mask)
    farthest = 2 * max(mask.shape[1:])  # half patches; no point of the grid lies farther along an axis

    difficulty = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    pending = mask.nonzero()  # (M, 3): image, row, column of the masked patches not settled yet
    radius = 4
    while len(pending) > 0:
        settled, nearest = _nearest_points(offered, pending, k, radius, last=radius >= 1.5 * farthest)
        image, row, column = pending[settled].unbind(1)
        difficulty[image, row, column] = _mean_distance(nearest, radius)
        pending = pending[~settled]
        radius += radius // 2
    return difficulty


def check_mask(mask: Bool[Tensor, "B H W"]) -> None:
    """Raise InputError unless every image has both a visible and a masked patch."""
    masked = mask.flatten(1)
    for broken, what in ((masked.all(dim=1), "visible"), (~masked.any(dim=1), "masked")):
        if broken.any():
            raise InputError(f"image {int(broken.nonzero()[0])} of the batch has no {what} patch")


def _offered_points(mask: Bool[Tensor, "B H W"]) -> Tensor:
    """(B, 2H+1, 2W+1) uint8: how many visible patches offer each point of the half-patch lattice."""
    images, height, width = mask.shape
    visible = (~mask).to(torch.uint8)
    offered = visible.new_zeros(images, 2 * height + 1, 2 * width + 1)
    for top in range(3):
        for left in range(3):
            offered[:, top : top + 2 * height : 2, left : left + 2 * width : 2] += visible
    return offered


@lru_cache(maxsize=64)
def _offsets(radius: int, device: torch.device) -> Tensor:
    """(R, 2) lattice offsets within ``radius`` half patches of a centre, nearest first, ties row-major."""
    steps = torch.arange(-radius, radius + 1, device=device)
    offsets = torch.cartesian_prod(steps, steps)
    squared = offsets.square().sum(dim=1)
    near = squared <= radius**2
    return offsets[near][squared[near].argsort(stable=True)]


@lru_cache(maxsize=64)
def _squared_distances(radius: int, device: torch.device) -> Tensor:
    """(R + 1, 16 * 16) squared pixel distances from a patch's pixels to each offset's point; the last row inf."""
    points = _offsets(radius, device) * (_PATCH_SIZE / 2)
    pixels = torch.arange(_PATCH_SIZE, device=device) - _PATCH_SIZE / 2
    down = (pixels - points[:, :1]).square()  # (R, P)
    across = (pixels - points[:, 1:]).square()
    squared = (down[:, :, None] + across[:, None, :]).flatten(1).float()
    return F.pad(squared, (0, 0, 0, 1), value=float("inf"))


def _nearest_points(offered: Tensor, pending: Tensor, k: int, radius: int, last: bool) -> tuple[Tensor, Tensor]:
    """Which pending patches find k points within the radius, and the indices (M', k) of those in `_offsets`."""
    padded = F.pad(offered, (radius,) * 4)
    stride = padded.shape[2]
    offsets = _offsets(radius, offered.device)
    image, row, column = pending.unbind(1)
    centre = (image * padded.shape[1] + 2 * row + 1 + radius) * stride + 2 * column + 1 + radius
    around = centre[:, None] + (offsets[:, 0] * stride + offsets[:, 1])  # (M, R)
    found = padded.view(-1).index_select(0, around.view(-1)).view_as(around).cumsum(dim=1, dtype=torch.int32)
    # The last walk sees the whole grid: what it doesn't find isn't there.
    settled = torch.ones_like(found[:, -1], dtype=torch.bool) if last else found[:, -1] >= k
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=found.device)
    found = found[settled]
    return settled, torch.searchsorted(found, ranks.expand(len(found), k).contiguous())


def _mean_distance(nearest: Tensor, radius: int) -> Tensor:
    """(M,) mean over a patch's pixels of the distance to the nearest of its k points."""
    table = _squared_distances(radius, nearest.device)
    means = []
    for chunk in nearest.split(_CHUNK_PIXELS // _PATCH_SIZE**2):
        squared = table.index_select(0, chunk[:, 0])
        for point in chunk[:, 1:].unbind(1):
            torch.minimum(squared, table.index_select(0, point), out=squared)
        means.append(squared.sqrt_().mean(dim=1))
    return torch.cat(means) if means else table.new_empty(0)


def p2dist_exact(mask: Bool[Tensor, "B H W"], patch_size: int = 16) -> Float[Tensor, "B H W"]:
    """P2Dist as defined: the Euclidean distance transform of the pixel mask, averaged over each patch.

    A visible patch's nearest pixel to a pixel outside is found by clamping, an axis at a time, so the
    transform costs H + W operations a pixel instead of one for every visible pixel.

    Args:
        mask: True = masked; each image needs a visible and a masked patch.
        patch_size: P, in pixels.

    Returns:
        float32, pixels; 0 where visible.

    Raises:
        InputError: an image has no visible or no masked patch, or patch_size is not positive.

    Source: Eq. 1.
    """
    check_mask(mask)
    check_range("patch_size", patch_size, PositiveInt)
    images = max(1, _CHUNK_PIXELS // (mask.shape[1] * mask.shape[2] * patch_size**2))
    return torch.cat([_distance_transform(chunk, patch_size) for chunk in mask.split(images)])


def _distance_transform(mask: Tensor, patch_size: int) -> Tensor:
    """(B, H, W) mean over each patch of the pixels' distance to the nearest visible pixel."""
    height, width = mask.shape[1:]
    unseen = torch.where(mask, torch.inf, 0.0)  # (B, H, W)

    across = _squared_axis_distance(width, patch_size, mask.device)  # (W, P * W)
    in_row = unseen[:, :, 0, None] + across[0]  # (B, H, P * W): nearest visible pixel of the same patch row
    for column in range(1, width):
        torch.minimum(in_row, unseen[:, :, column, None] + across[column], out=in_row)

    down = _squared_axis_distance(height, patch_size, mask.device)  # (H, P * H)
    squared = in_row[:, 0, None, :] + down[0, :, None]  # (B, P * H, P * W)
    for row in range(1, height):
        torch.minimum(squared, in_row[:, row, None, :] + down[row, :, None], out=squared)
    return F.avg_pool2d(squared.sqrt_()[:, None], patch_size)[:, 0]


def _squared_axis_distance(patches: int, patch_size: int, device: torch.device) -> Tensor:
    """(patches, patches * P) squared distance along one axis from each pixel to the nearest of each patch."""
    pixel = torch.arange(patches * patch_size, dtype=torch.float32, device=device)
    first = torch.arange(patches, device=device)[:, None] * patch_size
    return torch.maximum(first - pixel, pixel - (first + patch_size - 1)).clamp_(min=0).square_()
