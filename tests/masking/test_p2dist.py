import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

import efficient_mae as emae

# Patches with d <= beta by Algorithm 1 and exactly, 14 x 14, P = 16: docs/readings.md.
COUNTS = {
    0.75: {9: (100.9, 98.5), 13: (127.3, 127.3), 26: (144.0, 142.8)},
    0.85: {9: (78.0, 76.0), 13: (113.7, 113.7), 26: (150.1, 145.0)},
    0.90: {9: (58.0, 56.6), 13: (92.5, 92.5), 26: (137.0, 127.6)},
    0.95: {9: (30.6, 30.2), 13: (53.9, 53.9), 26: (92.3, 79.7)},
}


def random_masks(ratio: float, count: int = 2000) -> torch.Tensor:
    return emae.random_masking(count, (14, 14), ratio, torch.Generator().manual_seed(int(ratio * 100)))


def algorithm_1(mask: np.ndarray, k: int) -> np.ndarray:
    """The paper's Algorithm 1 as it is written, for one image, a patch at a time; patches of 16 pixels."""
    size = 16
    difficulty = np.zeros(mask.shape)
    rows, columns = np.nonzero(~mask)
    halves = np.array([-size / 2, 0, size / 2])
    points = [
        (r * size + size / 2 + y, c * size + size / 2 + x)
        for r, c in zip(rows, columns)
        for y in halves
        for x in halves
    ]
    points = np.array(points)
    for row, column in zip(*np.nonzero(mask)):
        centre = np.array([row, column]) * size + size / 2
        squared = ((points - centre) ** 2).sum(axis=1)
        nearest = points[np.lexsort((points[:, 1], points[:, 0], squared))[:k]]
        pixel = np.arange(size) - size / 2
        pixels = centre + np.stack(np.meshgrid(pixel, pixel, indexing="ij"), axis=-1).reshape(-1, 2)
        distance = np.linalg.norm(pixels[:, None] - nearest[None], axis=2)
        difficulty[row, column] = distance.min(axis=1).mean()
    return difficulty


@st.composite
def masks(draw) -> np.ndarray:
    """A rectangular grid with at least one visible and one masked patch."""
    height, width = draw(st.integers(1, 7)), draw(st.integers(2, 9))
    visible = draw(st.integers(1, height * width - 1))
    order = np.random.default_rng(draw(st.integers(0, 2**31))).permutation(height * width)
    mask = np.ones(height * width, dtype=bool)
    mask[order[:visible]] = False
    return mask.reshape(height, width)


@pytest.mark.parametrize("ratio", COUNTS)
def test_counts_of_the_readings(ratio: float):
    mask = random_masks(ratio)
    for form, distance in enumerate((emae.p2dist(mask), emae.p2dist_exact(mask))):
        for beta, expected in COUNTS[ratio].items():
            kept = emae.select_targets(distance, beta=beta).sum().item() / len(mask)
            assert kept == pytest.approx(expected[form], rel=0.01), (form, beta)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 14, 16, 32])
@pytest.mark.parametrize("beta", [13.0, 26.0])
def test_difficulty_follows_from_the_grid_alone(size: int, beta: float):
    mask = random_masks(0.85, 500)
    kept = emae.select_targets(emae.p2dist(mask, size), size, beta)
    assert torch.equal(kept, emae.select_targets(emae.p2dist(mask), 16, beta))
    turned = emae.select_targets(emae.p2dist(mask.flip(1, 2), size), size, beta).flip(1, 2)
    assert (kept != turned)[mask].float().mean() <= 0.06
    neighbours = torch.ones(2, 1, 3, dtype=torch.bool)
    neighbours[0, 0, 0] = neighbours[1, 0, 2] = False  # visible on the left, and on the right
    left, right = emae.p2dist(neighbours, size)[:, 0, 1].tolist()
    assert min(left, right) > 0 and (max(left, right) / min(left, right)) ** 0.6 < 1.07  # of weights


@pytest.mark.parametrize(("ratio", "share"), [(0.75, 0.866), (0.85, 0.681), (0.90, 0.522)])
def test_share_with_a_visible_neighbour(ratio: float, share: float):
    mask = random_masks(ratio)
    near = emae.difficulty(mask, metric="visible_neighbours").isfinite() & mask
    assert near.sum().item() / mask.sum().item() == pytest.approx(share, abs=0.005)


@settings(deadline=None, max_examples=60)
@given(masks(), st.integers(1, 9), st.integers(1, 12))
def test_equals_algorithm_1_as_written(mask: np.ndarray, size: int, k: int):
    ours = emae.p2dist(torch.from_numpy(mask)[None], size, k)[0].numpy()
    np.testing.assert_allclose(ours, algorithm_1(mask, k) * size / 16, atol=1e-4)


@settings(deadline=None, max_examples=100)
@given(masks(), st.integers(1, 18))
def test_exact_equals_scipys_distance_transform(mask: np.ndarray, size: int):
    pixels = np.kron(mask, np.ones((size, size), dtype=bool))
    transform = distance_transform_edt(pixels)
    expected = transform.reshape(mask.shape[0], size, mask.shape[1], size).mean(axis=(1, 3))
    ours = emae.p2dist_exact(torch.from_numpy(mask)[None], size)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_large_grid_with_one_visible_patch():
    mask = np.ones((40, 55), dtype=bool)
    mask[39, 2] = False
    ours = emae.p2dist(torch.from_numpy(mask)[None], 14)[0].numpy()
    np.testing.assert_allclose(ours, algorithm_1(mask, 8) * 14 / 16, rtol=1e-5)


def test_visible_patches_are_zero_and_batches_are_independent():
    mask = random_masks(0.85, 30)
    distance = emae.p2dist(mask)
    assert (distance[~mask] == 0).all() and (distance[mask] > 0).all()
    assert torch.equal(distance, torch.cat([emae.p2dist(one[None]) for one in mask]))


@pytest.mark.parametrize("function", [emae.p2dist, emae.p2dist_exact, emae.difficulty])
@pytest.mark.parametrize(("value", "what"), [(True, "visible"), (False, "masked")])
def test_an_image_without_visible_or_masked_patches(function, value: bool, what: str):
    mask = random_masks(0.85, 3)
    mask[1] = value
    with pytest.raises(ValueError, match=f"image 1 .* no {what} patch"):
        function(mask)


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    mask = random_masks(0.9, 200)
    torch.testing.assert_close(emae.p2dist(mask.cuda()).cpu(), emae.p2dist(mask), atol=1e-4, rtol=0)
    torch.testing.assert_close(emae.p2dist_exact(mask.cuda()).cpu(), emae.p2dist_exact(mask), atol=1e-4, rtol=0)
