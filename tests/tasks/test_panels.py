"""Panels: what is drawn where, for any channels and shapes, and nothing of the model left changed."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import efficient_mae as emae
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.panels import DPI, draw_panel


def small_model(**changes):
    torch.manual_seed(0)
    settings = dict(img_size=32, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32) | changes
    return emae.create_model("mae_vit_tiny_patch4", **settings)


def panel_of(model, images: int = 2, path: Path | None = None):
    channels = model.config.in_chans
    pixels = torch.rand(images, channels, *model.config.img_size, generator=torch.Generator().manual_seed(0))
    layout = model.plan(images, generator=torch.Generator().manual_seed(1))
    statistics = ImageStatistics((0.5,) * channels, (0.5,) * channels)
    return draw_panel(model, (pixels - 0.5) / 0.5, layout, statistics, title="after epoch 3", path=path), layout


def drawn_images(figure) -> list[np.ndarray]:
    """What the figure's canvas shows, row by row of the panel, without the colour bars."""
    return [np.ma.filled(image.get_array(), np.nan) for image in figure.axes[0].images]


def covered_patches(figure, grid: tuple[int, int]) -> list[np.ndarray]:
    """Which patches of each image something lies upon that covers one."""
    found = []
    for image in figure.axes[0].images:
        left, right, bottom, top = image.get_extent()
        covered = np.zeros(grid, bool)
        for shape in (path.get_extents() for one in figure.axes[0].collections for path in one.get_paths()):
            across, down = (right - left) / grid[1], (top - bottom) / grid[0]
            row, column = (top - shape.y1) / down, (shape.x0 - left) / across
            within = 0 <= row + 0.5 < grid[0] and 0 <= column + 0.5 < grid[1]
            if within and np.allclose((shape.width, shape.height), (across, down)):
                covered[round(row), round(column)] = True
        found.append(covered)
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("img_size", [32, (24, 48), (48, 16)])
def test_any_channels_and_shapes_are_drawn(channels: int, img_size, tmp_path: Path):
    model = small_model(in_chans=channels, img_size=img_size)
    figure, _ = panel_of(model, path=tmp_path / "figures" / "panel.png")
    with Image.open(tmp_path / "figures" / "panel.png") as picture:
        assert picture.format == "PNG"
        assert np.allclose(picture.size, figure.get_size_inches() * DPI, atol=1)
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["panel.png"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("img_size", [32, (24, 48), (48, 16)])
def test_images_stand_in_rows_and_columns_and_covers_lie_upon_them(img_size):
    figure, _ = panel_of(small_model(mask_ratio=0.9, beta=16.0, img_size=img_size), images=3)
    canvas = figure.axes[0]
    places = np.array([image.get_extent() for image in canvas.images]).reshape(3, 5, 4)
    left, right, bottom, top = np.moveaxis(places, -1, 0)
    assert (right[:, :-1] < left[:, 1:]).all() and (top[1:] < bottom[:-1]).all()
    assert np.ptp(left, axis=0).max() == np.ptp(bottom, axis=1).max() == 0
    np.testing.assert_allclose((top - bottom) / (right - left), figure_ratio(img_size))
    assert left.min() > 0 and bottom.min() > 0 and (right.max(), top.max()) < tuple(figure.get_size_inches())
    hatched = [one for one in canvas.collections if one.get_hatch()]
    plain = [one for one in canvas.collections if not one.get_hatch() and len(one.get_paths()) > 1]
    highest = max(image.get_zorder() for image in canvas.images)
    assert len(plain) == 3 and min(one.get_zorder() for one in plain + hatched) > highest


def figure_ratio(img_size: int | tuple[int, int]) -> float:
    """Height to width."""
    height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    return height / width


def test_each_column_shows_what_it_says():
    model = small_model(norm_pix_loss=False, mask_ratio=0.9, beta=16.0)
    figure, layout = panel_of(model, images=3)
    shown = drawn_images(figure)
    assert len(shown) == 3 * 5
    assert (layout.mask & ~layout.predicted).any()
    for row in range(3):
        picture, visible, difficulty, painted, loss = shown[row * 5 : row * 5 + 5]
        mask, predicted = layout.mask[row].numpy(), layout.predicted[row].numpy()
        hidden = mask.repeat(4, 0).repeat(4, 1)
        np.testing.assert_array_equal(picture, visible)
        np.testing.assert_allclose(picture[~hidden], painted[~hidden])
        assert not np.allclose(picture[hidden], painted[hidden])
        np.testing.assert_array_equal(np.isfinite(difficulty), mask)
        np.testing.assert_array_equal(difficulty[mask], layout.difficulty[row].numpy()[mask])
        np.testing.assert_array_equal(np.isfinite(loss), predicted)
        left_out, none = mask & ~predicted, np.zeros_like(mask)
        covered = covered_patches(figure, mask.shape)[row * 5 : row * 5 + 5]
        np.testing.assert_array_equal(covered, [none, mask, none, left_out, left_out])


@pytest.mark.parametrize(
    ("norm_pix_loss", "words"),
    [(True, "de-normalised with its own true mean and variance"), (False, "plain pixels")],
)
def test_the_caption_tells_how_pixels_were_made(norm_pix_loss: bool, words: str):
    figure, layout = panel_of(small_model(norm_pix_loss=norm_pix_loss))
    caption = " ".join(text.get_text() for text in reversed(figure.texts))
    assert words in caption
    assert "Mask ratio 0.85, beta 26 (6.5 px at this patch size), gamma 0.6" in caption
    assert f"{int(layout.mask[0].sum())} of 64 patches hidden" in caption
    assert f"{round(len(layout.ids_predict) / 2, 1):g} predicted" in caption
    assert "after epoch 3" in caption


@pytest.mark.parametrize("img_size", [32, (48, 16)])
def test_no_text_leaves_the_figure_or_meets_another_or_a_colour_bar(img_size):
    figure, _ = panel_of(small_model(img_size=img_size), images=6)
    assert any("left out" in text.get_text() for text in figure.texts)
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    bars = [ax.get_window_extent(renderer) for ax in figure.axes[1:]]
    boxes = [*bars, *(text.get_window_extent(renderer) for text in figure.texts)]
    assert len(bars) == 2
    width, height = figure.canvas.get_width_height()
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_the_model_and_its_surroundings_are_left_as_they_were():
    model = small_model()
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        panel_of(model)
        assert model.training == model.backbone.blocks.training == training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_six_rows_at_most_and_no_legend_where_nothing_is_left_out():
    figure, _ = panel_of(small_model(beta=None), images=8)
    assert len(drawn_images(figure)) == 6 * 5
    words = [text.get_text() for text in figure.texts]
    assert "beyond beta: left out" not in words
    assert any("beta none" in line for line in words)


def test_a_share_of_the_hidden_patches_is_called_so():
    figure, layout = panel_of(small_model(beta=None, targets="random", prediction_ratio=0.5))
    words = [text.get_text() for text in figure.texts]
    assert len(layout.ids_predict) == 2 * 28 and "left out" in words and "beyond beta: left out" not in words
    assert any("Mask ratio 0.85, targets random 0.5, gamma 0.6" in line for line in words)


def test_beta_scales_with_the_patch():
    assert small_model().config.beta_in_pixels(4) == 6.5
    assert small_model(beta=None).config.beta_in_pixels(4) is None
