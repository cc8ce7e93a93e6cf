import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.transform import resize

import efficient_mae as emae
from efficient_mae.interop import ImageStatistics, adapt_statistics
from tests.interop.conftest import small_model


def wave(rows: int, columns: int) -> np.ndarray:
    """A smooth function of the place in the picture, another along each side, at the patches' centres."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    return np.cos(2.0 * y)[:, None] * np.sin(1.0 + 3.0 * x)[None]


def test_positions_stretch_with_the_picture_in_both_directions():
    model = small_model(img_size=(64, 96))
    table = wave(8, 12)
    model.backbone.pos_embed[0, 1:, 5] = torch.from_numpy(table).flatten()
    for size in ((96, 96), (32, 160), (128, 192)):
        adapted = emae.adapt_encoder(model, img_size=size)
        grid = (size[0] // 8, size[1] // 8)
        resized = adapted.pos_embed[0, 1:, 5].view(grid).numpy()
        # At the border there is nothing to interpolate from; 1.5 old patches are within its reach.
        inner = tuple(slice(n := -(-3 * new // (2 * old)), new - n) for new, old in zip(grid, (8, 12)))
        np.testing.assert_allclose(resized[inner], wave(*grid)[inner], atol=0.02)
        np.testing.assert_allclose(resized, resize(table, grid, order=3, mode="edge", anti_aliasing=False), atol=0.08)
        assert torch.equal(adapted.pos_embed[0, 0], model.backbone.pos_embed[0, 0])
        assert adapted(torch.randn(2, 3, *size)).shape == (2, grid[0] * grid[1] + 1, 192)


def test_without_a_change_the_encoder_is_the_same():
    model = small_model()
    adapted = emae.adapt_encoder(model, img_size=32, patch_size=8, in_chans=3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in adapted.state_dict().items())
    assert "mask_token" not in adapted.state_dict() and not adapted.training
    with torch.no_grad():
        adapted.cls_token.zero_()
    assert model.backbone.cls_token.any(), "the weights are shared"


def test_larger_patches_of_a_larger_image_give_the_same_tokens():
    model = small_model()
    adapted = emae.adapt_encoder(model, img_size=64, patch_size=16)
    patches = torch.randn(2 * 16, 3, 8, 8)

    def picture(patches: torch.Tensor) -> torch.Tensor:
        size = patches.shape[-1]
        return patches.view(2, 4, 4, 3, size, size).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 4 * size, 4 * size)

    larger = F.interpolate(patches, size=16, mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.backbone.forward_features(picture(patches))
        torch.testing.assert_close(adapted(picture(larger)), expected, rtol=1e-4, atol=1e-4)


def test_channels():
    model = small_model()
    grey = torch.randn(2, 1, 32, 32)
    colour = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for in_chans in (1, 2, 4):
            mean = emae.adapt_encoder(model, in_chans=in_chans, channels="mean")
            expected = model.backbone.forward_features(grey.expand(-1, 3, -1, -1).contiguous())
            ours = mean(grey.expand(-1, in_chans, -1, -1).contiguous())
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        repeat = emae.adapt_encoder(model, in_chans=6, channels="repeat")
        torch.testing.assert_close(
            repeat(torch.cat([colour, colour], dim=1)), model.backbone.forward_features(colour), rtol=1e-4, atol=1e-4
        )
        first = emae.adapt_encoder(model, in_chans=5, channels="first")
        more = torch.cat([colour, torch.randn(2, 2, 32, 32)], dim=1)
        torch.testing.assert_close(first(more), model.backbone.forward_features(colour), rtol=1e-4, atol=1e-4)
        less = emae.adapt_encoder(model, in_chans=2, channels="first")
        assert torch.equal(less.patch_embed.proj.weight, model.backbone.patch_embed.proj.weight[:, :2])


def test_statistics_follow_the_channels():
    statistics = ImageStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert adapt_statistics(statistics, 3, None) == statistics
    assert adapt_statistics(statistics, 1, "mean").mean == pytest.approx((0.2,))
    assert adapt_statistics(statistics, 4, "repeat").mean == (0.1, 0.2, 0.3, 0.1)
    assert adapt_statistics(statistics, 2, "first").std == (0.4, 0.5)
    assert adapt_statistics(statistics, 4, "first").std == pytest.approx((0.4, 0.5, 0.6, 0.5))


def test_what_cannot_be():
    model = small_model()
    with pytest.raises(ValueError, match="in_chans=1, but the weights are for 3 channels.*mean.*repeat.*first"):
        emae.adapt_encoder(model, in_chans=1)
    with pytest.raises(ValueError, match="channels='median': must be one of mean, repeat, first"):
        emae.adapt_encoder(model, in_chans=1, channels="median")
    with pytest.raises(ValueError, match="patch_size=7 does not divide"):
        emae.adapt_encoder(model, patch_size=7)
    with pytest.raises(ValueError, match="in_chans=0"):
        emae.adapt_encoder(model, in_chans=0, channels="mean")


def test_bands_are_those_of_as_many_channels():
    """A range for all bands goes on to other channels; bands, and a range for each, do not."""
    three = ImageStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, (0, 1, 0, 2, 0, 3), (4, 3, 2))
    assert adapt_statistics(three, 3, None) == three
    one = adapt_statistics(three, 1, "mean")
    assert (one.bands, one.value_range) == (None, None) and one.reading.in_chans == 1
    assert adapt_statistics(ImageStatistics((0.5,) * 3, (0.5,) * 3, None, (0, 4095)), 1, "mean").value_range == (
        0,
        4095,
    )
