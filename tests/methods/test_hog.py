"""Histograms of gradients, beside the published implementations' values and a plain loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from efficient_mae.data import normalize
from efficient_mae.methods.hog import draw_hog, hog_targets

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of SlowFast's own, in float32, from the definition in float64.
AGREEMENT = 1.3e-7


def all_targets(images: torch.Tensor, patch_size: int = 16, cell_size: int = 8) -> torch.Tensor:
    patches = images.shape[2] * images.shape[3] // patch_size**2
    targets = hog_targets(images, torch.arange(len(images) * patches), patch_size, cell_size)
    return targets.view(len(images), patches, -1)


@pytest.mark.parametrize("side", [64, 112])
def test_continuous_images(side: int):
    golden = load_file(GOLDEN / f"maskfeat_hog_{side}.safetensors")
    assert (all_targets(golden["images"]) - golden["target_patches"]).abs().max() <= AGREEMENT


def test_images_of_8_bits():
    golden = load_file(GOLDEN / "maskfeat_hog_224.safetensors")
    pixels = golden["images_uint8"]
    exact = golden["target_patches_0_255"]
    assert (all_targets(pixels.float()) - exact).abs().max() <= AGREEMENT
    assert (exact.view(2, 196, 3, 9, 4) == 0).all(dim=3).any(), "no flat cell to test"
    # Normalised images have the targets of whole numbers too, where the published code has noise.
    for mean, std in (IMAGENET, ((0.5,) * 3, (0.5,) * 3), ((0.1, 0.5, 0.9), (0.05, 0.1, 1.0))):
        ours = all_targets(normalize(pixels, mean, std))
        assert (ours - exact).abs().max() < 1e-6
    stable = golden["stable_patches"]
    ours = all_targets(normalize(pixels, *IMAGENET))
    assert (ours - golden["target_patches"])[stable].abs().max() <= 2e-7
    assert (ours - golden["target_patches"])[~stable].abs().max() > 0.1


def by_hand(image: np.ndarray, patch_size: int, cell_size: int) -> np.ndarray:
    """The definition, pixel by pixel, of whole numbers in double precision; (patches, X)."""
    channels, height, width = image.shape
    x = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    histograms = np.zeros((channels, 9, height // cell_size, width // cell_size))
    for channel, row, column in np.ndindex(image.shape):
        near = x[channel, row : row + 3, column : column + 3]
        gx = (near[:, 0] - near[:, 2]) @ [1, 2, 1]
        gy = (near[0] - near[2]) @ [1, 2, 1]
        number = 0 if gx == 0 else math.floor(9 * math.atan2(gx, gy) / math.pi) % 9
        histograms[channel, number, row // cell_size, column // cell_size] += math.hypot(gx, gy)
    norms = np.sqrt((histograms**2).sum(axis=1, keepdims=True))
    histograms /= np.maximum(norms, 1e-12)
    cells = patch_size // cell_size
    patches = histograms.reshape(channels, 9, height // patch_size, cells, width // patch_size, cells)
    return patches.transpose(2, 4, 0, 1, 3, 5).reshape(-1, channels * 9 * cells**2)


@pytest.mark.parametrize(("patch", "cell", "bits"), [(8, 4, 16), (8, 8, 16), (4, 2, 8), (4, 1, 8), (6, 2, 3)])
def test_other_patches_cells_channels_and_bits(patch: int, cell: int, bits: int):
    rng = np.random.default_rng(cell)
    image = rng.integers(0, 2**bits, (2, 4 * patch, 3 * patch))
    image[0, : 2 * patch, : 2 * patch] = 2**bits - 1
    image[1, :, ::2] = image[1, :1, :1]
    images = torch.from_numpy(image / (2**bits - 1)).float()[None]
    found = all_targets(normalize(images, (0.4, 0.6), (0.2, 0.3)), patch, cell)[0].numpy()
    np.testing.assert_allclose(found, by_hand(image, patch, cell), atol=1e-4 if bits == 16 else 1e-5)


def test_chosen_patches_alone():
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([17, 2, 5])
    assert torch.equal(hog_targets(images, ids, 16, 8), all_targets(images).flatten(0, 1)[ids])
    assert hog_targets(images, ids[:0], 16, 8).shape == (0, 108)


def test_edges_are_drawn_along_themselves():
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    for degrees in range(10, 180, 20):
        along = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))  # x, y
        across = -along[1] * columns + along[0] * rows
        inner = hog_targets(across[None, None], torch.tensor([4]), 16, 16)
        drawn = draw_hog(inner, 1, 16, 16)[0, 0]
        assert drawn.max() > 0.85 and drawn.min() == 0
        y, x = (drawn > 0.5).nonzero().float().sub(7.5).T
        moments = torch.linalg.eigh(torch.stack([torch.stack([x @ x, x @ y]), torch.stack([x @ y, y @ y])]))
        axis = moments.eigenvectors[:, 1]
        assert abs(axis[0] * along[0] + axis[1] * along[1]) > math.cos(math.radians(6)), degrees


def test_what_is_below_zero_is_not_drawn():
    assert not draw_hog(torch.full((2, 108), -0.5), 3, 16, 8).any()
    assert draw_hog(torch.full((2, 108), 3.0), 3, 16, 8).max() == 1
