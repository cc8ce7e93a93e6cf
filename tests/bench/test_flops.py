"""The cost counter against the paper's costs (docs/readings.md's table, computed from the architecture)."""

import pytest
import torch

import efficient_mae as emae
from efficient_mae.bench.flops import count_gmacs, model_cost
from efficient_mae.errors import InputError
from efficient_mae.methods.mae import MAEConfig, MaskLayout


def config_of(name: str, **changes) -> MAEConfig:
    with torch.device("meta"):
        return emae.create_model(name, **changes).config


# Multiply-accumulates of one image's forward pass, computed from MAE's architecture: docs/readings.md. Where
# the paper gives a figure, it is the same to a rounding.
GMACS = [
    ("mae_vit_base_patch16", 0.75, None, 9.78),
    ("mae_vit_base_patch16", 0.85, None, 8.05),
    ("mae_vit_base_patch16", 0.90, None, 7.18),
    ("mae_vit_base_patch16", 0.95, None, 6.32),
    ("mae_vit_base_patch16", 0.85, 26.0, 7.56),
    ("mae_vit_large_patch16", 0.75, None, 20.76),
    ("mae_vit_large_patch16", 0.85, None, 14.63),
    ("mae_vit_large_patch16", 0.90, None, 11.58),
    ("mae_vit_large_patch16", 0.95, None, 8.54),
    ("mae_vit_large_patch16", 0.85, 26.0, 14.14),
    ("mae_vit_large_patch16", 0.90, 26.0, 10.42),
    ("mae_vit_large_patch16", 0.95, 26.0, 5.92),
    ("mae_vit_huge_patch14", 0.75, None, 48.56),
    ("mae_vit_huge_patch14", 0.85, None, 31.97),
    ("mae_vit_huge_patch14", 0.90, None, 23.71),
    ("mae_vit_huge_patch14", 0.95, None, 15.48),
    ("mae_vit_huge_patch14", 0.85, 26.0, 31.33),
]


# The first block, the last and those between differ in what they skip.
FEW = {"depth": 2, "decoder_depth": 3}
CASES = [
    pytest.param(*case, depths, marks=() if depths or "base" in case[0] else pytest.mark.slow)
    for depths in (FEW, {})
    for *case, _ in GMACS
]


@pytest.mark.parametrize(("name", "ratio", "beta", "expected"), GMACS)
def test_the_papers_count(name: str, ratio: float, beta: float | None, expected: float):
    assert config_of(name, mask_ratio=ratio, beta=beta).paper_gmacs(64) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "ratio", "beta", "depths"), CASES)
def test_what_is_computed_is_the_papers_count_less_what_nobody_reads(
    name: str, ratio: float, beta: float | None, depths: dict[str, int]
):
    config, images = config_of(name, mask_ratio=ratio, beta=beta, **depths), 64
    paper = config.paper_gmacs(images)

    lengths = config_layout(config, images).parts[0].tokens.lengths.double()
    patches, visible = 196 if config.patch_size == 16 else 256, lengths_encoded(config, images)
    predicted = lengths.mean() - visible
    width, pixels = config.decoder_embed_dim, 3 * config.patch_size**2
    skipped = (
        # Hidden patches are not embedded.
        (patches + 1 - visible) * pixels * config.embed_dim
        # In the first decoder block a hidden patch has the same query, key and value in every image.
        + (predicted - patches / images) * 3 * width**2
        # In the last one nobody reads the output of visible patches: no query, projection, MLP or pixels.
        + visible * (2 * width**2 + 8 * width**2 + width * pixels)
        + 2 * (visible * lengths).mean() * width
    )
    assert count_gmacs(config, images) == pytest.approx(paper - float(skipped) / 1e9, rel=1e-3)


@pytest.mark.parametrize("depths", [FEW, {"depth": 3, "decoder_depth": 1}])
@pytest.mark.parametrize(("name", "ratio"), [("mae_vit_base_patch16", 0.85), ("mae_vit_large_patch16", 0.75)])
def test_what_a_cross_decoder_computes(name: str, ratio: float, depths: dict[str, int]):
    """Counted by hand, from its linear maps and its attention."""
    config, images = config_of(name, mask_ratio=ratio, decoder="cross", **depths), 64
    predicted = float(config_layout(config, images).parts[0].tokens.lengths.double().mean())
    encoded, outer, inner, pixels = 1 + int(196 * (1 - ratio)), config.embed_dim, config.decoder_embed_dim, 768
    encoder = (encoded - 1) * pixels * outer + config.depth * (12 * outer**2 * encoded + 2 * outer * encoded**2)
    sums = config.decoder_depth * config.depth * encoded * outer
    # Keys and values; then query, projection, MLP and the scores of each predicted patch.
    block = 2 * encoded * outer * inner + predicted * (10 * inner**2 + 2 * encoded * inner)
    # In the first block a hidden patch has the same query in every image.
    shared = (predicted - 196 / images) * inner**2
    whole = encoder + sums + config.decoder_depth * block - shared + predicted * inner * pixels
    assert count_gmacs(config, images) == pytest.approx(whole / 1e9, rel=1e-4)
    # As the paper counts, every patch is embedded and nothing is shared.
    assert config.paper_gmacs(images) == pytest.approx(
        (whole + shared + (196 - encoded + 1) * pixels * outer) / 1e9, rel=1e-4
    )
    tokens = model_cost(config, images).tokens
    assert tokens["decoder_tokens"] == tokens["predicted_patches"] and tokens["encoder_tokens"] == encoded


def config_layout(config: MAEConfig, images: int) -> MaskLayout:
    noise = torch.rand(images, 196 if config.patch_size == 16 else 256, generator=torch.Generator().manual_seed(0))
    return config.planner()(noise)


def lengths_encoded(config: MAEConfig, images: int) -> int:
    return len(config_layout(config, images).parts[0].rows_encoded) // images


@pytest.mark.parametrize(
    ("name", "efficient", "mae"),
    [("base_patch16", 7.56, 9.78), ("large_patch16", 14.14, 20.76), ("huge_patch14", 31.33, 48.56)],
)
def test_the_saving_is_the_papers(name: str, efficient: float, mae: float):
    cost = model_cost(config_of(f"mae_vit_{name}"))
    assert cost.ratio == pytest.approx(efficient / mae, rel=0.03)
    assert cost.gmacs < efficient and cost.mae_gmacs < mae


def test_parameters_and_tokens():
    cost = model_cost(config_of("mae_vit_base_patch16"), images=500)
    # timm's vit_base_patch16_224 without a head has 85.8 M, of which 0.15 M are positions, fixed here.
    assert cost.encoder_parameters == 85_798_656 - 197 * 768
    assert cost.tokens["encoder_tokens"] == 1 + 29
    assert cost.masked_patches == 167
    assert cost.tokens["predicted_patches"] == pytest.approx(150.1, rel=0.01)
    assert cost.tokens["decoder_tokens"] == pytest.approx(
        cost.tokens["encoder_tokens"] + cost.tokens["predicted_patches"]
    )
    plain = model_cost(config_of("mae_vit_base_patch16").baseline())
    assert plain.tokens["decoder_tokens"] == 197
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
