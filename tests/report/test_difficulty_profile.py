"""Fig. 2's numbers against numpy's own histogram, means and line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import efficient_mae as emae
from efficient_mae.errors import InputError
from efficient_mae.report.difficulty_profile import difficulty_edges, loss_by_difficulty, patches_by_difficulty


def small_model(**changes):
    torch.manual_seed(0)
    settings = dict(img_size=32, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32) | changes
    return emae.create_model("mae_vit_tiny_patch4", **settings)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(7, 1, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_means_counts_and_slopes_are_numpys(images: torch.Tensor, gamma: float):
    model = small_model(gamma=gamma, beta=8.0)
    edges = difficulty_edges(model.config, bins=5)
    profile = loss_by_difficulty(model, images.split(4), edges, masks=3, seed=5)

    generator = torch.Generator().manual_seed(5)
    planner = replace(model.config, beta=None).planner()
    distances, losses = [], []
    for batch in images.split(4):
        for _ in range(3):
            layout = planner(torch.rand(len(batch), 64, generator=generator))
            assert torch.equal(layout.predicted, layout.mask)  # beta leaves nothing out here
            with torch.no_grad():
                out = model(batch, layout)
            distances.append(out.difficulty[out.mask].double().numpy())
            losses.append((out.prediction - out.target).square().mean(1).double().numpy())
    d, loss = np.concatenate(distances), np.concatenate(losses)
    weighted = loss * d**-gamma / np.mean(d**-gamma)
    inside = np.clip(d, edges[0], edges[-1])
    counts = np.histogram(inside, edges)[0]
    np.testing.assert_array_equal(profile.counts, counts)
    assert profile.counts.sum() == 7 * 3 * int(layout.mask[0].sum())
    for found, values in ((profile.loss, loss), (profile.weighted_loss, weighted)):
        expected = np.histogram(inside, edges, weights=values)[0] / counts
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert profile.slope == pytest.approx(np.polyfit(d, loss, 1)[0], rel=1e-4)
    assert profile.weighted_slope == pytest.approx(np.polyfit(d, weighted, 1)[0], rel=1e-4)
    assert (profile.images, profile.masks) == (7, 3)


def test_the_factor_may_be_another_than_the_models(images: torch.Tensor):
    model = small_model(gamma=0.6)
    edges = difficulty_edges(model.config)
    plain, own = (loss_by_difficulty(model, [images], edges, gamma=gamma) for gamma in (0.0, None))
    assert plain.weighted_slope == pytest.approx(plain.slope) and own.weighted_slope < own.slope == plain.slope


def test_the_model_is_given_back_as_it_was(images: torch.Tensor):
    model = small_model().train()
    state = torch.get_rng_state()
    edges = difficulty_edges(model.config)
    one = loss_by_difficulty(model, [images], edges)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one.loss, loss_by_difficulty(model, [images], edges).loss)


def test_empty_bins_are_nan_and_nothing_is_lost(images: torch.Tensor):
    profile = loss_by_difficulty(small_model(), [images], np.array([-2.0, -1.0, 3.0, 4.0]))
    assert np.isnan(profile.loss[0]) and np.isfinite(profile.loss[1:]).all()
    assert profile.counts.sum() == 7 * 4 * 55  # int(64 * 0.15) = 9 visible


@pytest.mark.parametrize(
    ("batches", "masks", "what"), [([], 4, "no image"), ([torch.zeros(1, 1, 32, 32)], 0, "masks=0")]
)
def test_nothing_to_look_at(batches: list, masks: int, what: str):
    model = small_model()
    with pytest.raises(InputError, match=what):
        loss_by_difficulty(model, batches, difficulty_edges(model.config), masks=masks)


def test_higher_mask_ratios_have_fewer_easy_and_more_hard_patches():
    with torch.device("meta"):
        config = emae.create_model("mae_vit_base_patch16").config
    edges = np.array([0.0, 13.0, 26.0, 500.0])
    low, high = (patches_by_difficulty(config, ratio, edges, masks=2000) for ratio in (0.75, 0.85))
    assert low.sum() == pytest.approx(147) and high.sum() == pytest.approx(167)
    # The table of docs/readings.md: patches with P2Dist up to 13 and up to 26.
    np.testing.assert_allclose(low.cumsum()[:2], [127.3, 144.0], rtol=0.01)
    np.testing.assert_allclose(high.cumsum()[:2], [113.7, 150.1], rtol=0.01)


def test_edges_span_what_training_meets_even_where_all_patches_are_alike():
    with torch.device("meta"):
        edges = difficulty_edges(emae.create_model("mae_vit_base_patch16").config, bins=8)
        flat = difficulty_edges(emae.create_model("mae_vit_tiny_patch16", img_size=(16, 32), mask_ratio=0.5).config)
    assert len(edges) == 9 and (np.diff(edges) > 0).all()
    assert 3 < edges[0] < 8 and 30 < edges[-1] < 80
    assert (np.diff(flat) > 0).all()
