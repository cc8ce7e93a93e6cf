"""The cost counter against the paper's costs (the reading notes' table, computed from the architecture)."""

import pytest
import torch

import efficient_mae as emae
from efficient_mae.bench.flops import count_gmacs, mae_counterpart, model_cost
from efficient_mae.errors import InputError
from efficient_mae.models import MAEConfig


def config_of(name: str, **changes) -> MAEConfig:
    with torch.device("meta"):
        return emae.create_model(name, **changes).config


@pytest.mark.parametrize(
    ("name", "efficient", "mae"),
    [
        ("mae_vit_base_patch16", 7.56, 9.78),
        ("mae_vit_large_patch16", 14.14, 20.76),
        ("mae_vit_huge_patch14", 31.33, 48.56),
    ],
)
def test_costs_are_the_papers_or_less(name: str, efficient: float, mae: float):
    cost = model_cost(config_of(name))
    # What is skipped (hidden patches' embedding, the last block's idle queries) costs MAE less than 12 %.
    assert 0.88 * efficient < cost.gmacs < 1.015 * efficient
    assert 0.88 * mae < cost.mae_gmacs < 1.015 * mae
    assert cost.ratio == pytest.approx(efficient / mae, rel=0.03)


def test_parameters_and_tokens():
    cost = model_cost(config_of("mae_vit_base_patch16"), images=500)
    # timm's vit_base_patch16_224 without a head has 85.8 M, of which 0.15 M are positions, fixed here.
    assert cost.encoder_parameters == 85_798_656 - 197 * 768
    assert cost.encoder_tokens == 1 + 29
    assert cost.masked_patches == 167
    assert cost.predicted_patches == pytest.approx(150.1, rel=0.01)
    assert cost.decoder_tokens == pytest.approx(cost.encoder_tokens + cost.predicted_patches)
    plain = model_cost(mae_counterpart(config_of("mae_vit_base_patch16")))
    assert plain.decoder_tokens == 197
    assert plain.ratio == 1
    assert plain.decoder_parameters == cost.decoder_parameters


def test_counting_leaves_random_numbers_alone_and_repeats_itself():
    config = config_of("mae_vit_tiny_patch4", img_size=(28, 36), in_chans=2)
    state = torch.get_rng_state()
    assert count_gmacs(config) == count_gmacs(config)
    assert count_gmacs(config, seed=1) == pytest.approx(count_gmacs(config), rel=0.05)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_patches_for_mae():
    config = config_of("mae_vit_tiny_patch4", img_size=(4, 12), mask_ratio=0.6)
    with pytest.raises(InputError, match="leaves none of 3 patches visible"):
        model_cost(config)
