"""Patches of one pixel, the smallest that there are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import efficient_mae as emae
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.tasks.conftest import rows, write_images

GRID = (6, 7)
SETTINGS = dict(img_size=GRID, depth=1, decoder_depth=1, decoder_embed_dim=32)


def mask_of(images: int = 3) -> torch.Tensor:
    return emae.random_masking(images, GRID, 0.75, torch.Generator().manual_seed(0))


def test_p2dist_is_the_distance_to_the_nearest_visible_pixel():
    """A patch of one pixel has no others to average over: Eq. 1, pixel by pixel."""
    mask = mask_of()
    found = emae.p2dist_exact(mask, patch_size=1)
    for image in range(len(mask)):
        seen = (~mask[image]).nonzero().tolist()
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                nearest = min(math.hypot(row - r, column - c) for r, c in seen)
                assert found[image, row, column].item() == pytest.approx(nearest, rel=1e-6)
    assert torch.equal(emae.difficulty(mask, 1, "nearest_patch"), found)


def test_algorithm_1_and_beta_go_by_the_grid_alone():
    mask = mask_of()
    found, at_16 = emae.p2dist(mask, patch_size=1), emae.p2dist(mask, patch_size=16)
    torch.testing.assert_close(found, at_16 / 16, rtol=1e-6, atol=0)
    kept = emae.select_targets(found, patch_size=1, beta=26.0)
    assert torch.equal(kept, emae.select_targets(at_16, patch_size=16, beta=26.0)) and 0 < kept.sum() < mask.sum()


@pytest.mark.parametrize(("in_chans", "norm_pix_loss"), [(3, True), (3, False), (1, False)])
def test_a_model_is_that_of_pixels(in_chans: int, norm_pix_loss: bool):
    """Embedding, targets, loss and picture by indexing pixels; then steps lower the loss."""
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch1", in_chans=in_chans, norm_pix_loss=norm_pix_loss, **SETTINGS)
    images, mask = torch.randn(3, in_chans, *GRID), mask_of()
    out = model(images, mask)
    pixels = [images[image, :, row, column] for image, row, column in out.predicted.nonzero().tolist()]
    if norm_pix_loss:
        truth = [(p - p.mean()) / math.sqrt(np.var(p.numpy(), ddof=1) + 1e-6) for p in pixels]
    else:
        truth = pixels
    torch.testing.assert_close(out.target, torch.stack(truth), rtol=1e-5, atol=1e-5)
    difficulty = out.difficulty[out.predicted]
    expected = emae.difficulty_flatten_loss(out.prediction, torch.stack(truth), difficulty)
    torch.testing.assert_close(out.loss, expected)
    tokens = model.backbone.patch_embed(images)
    weight, bias = model.backbone.patch_embed.proj.weight[:, :, 0, 0], model.backbone.patch_embed.proj.bias
    torch.testing.assert_close(tokens, images.permute(0, 2, 3, 1).flatten(1, 2) @ weight.T + bias)

    picture = model.reconstruct(images, mask)
    assert torch.equal(picture.where(~mask[:, None], 0), images.where(~mask[:, None], 0))
    image, row, column = out.predicted.nonzero()[0].tolist()
    shown = out.prediction[0]
    if norm_pix_loss:
        shown = shown * math.sqrt(np.var(pixels[0].numpy(), ddof=1) + 1e-6) + pixels[0].mean()
    torch.testing.assert_close(picture[image, :, row, column], shown.detach(), rtol=1e-4, atol=1e-5)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        losses.append(model(images, mask).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert 0 < losses[-1] < 0.95 * losses[0]


def test_a_run_trains(tmp_path: Path):
    config = PretrainConfig(
        data=str(write_images(tmp_path / "images", 7)), out=str(tmp_path / "run"), model="mae_vit_tiny_patch1",
        img_size=8, depth=1, decoder_depth=1, decoder_embed_dim=32, epochs=2, batch_size=4, num_workers=0,
        precision="fp32", log_every=1, device="cpu",
    )  # fmt: skip
    run = pretrain(config)
    logged = rows(run)
    assert len(logged) == 2 and all(0 < row["loss"] < 10 and row["grad_norm"] > 0 for row in logged)
    assert emae.load(run).config.patch_size == 1


def test_a_single_number_cannot_be_normalised():
    """Its variance, of one number, is none: the loss would be nan from the first step on."""
    with pytest.raises(ValueError, match=r"norm_pix_loss=True: a patch of a single number has no variance"):
        emae.create_model("mae_vit_tiny_patch1", in_chans=1, **SETTINGS)
