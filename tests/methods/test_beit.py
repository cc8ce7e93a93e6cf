"""BEiT beside values of the published one, and its costs beside the paper's."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers.mlp import Mlp
from torch import Tensor

import efficient_mae as emae
from efficient_mae.bench.flops import count_gmacs
from efficient_mae.masking import blockwise_mask_from_noise
from efficient_mae.methods.beit import BEiT, BEiTConfig
from efficient_mae.methods.masked import MaskedPlan

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "beit.safetensors")
CONFIG = BEiTConfig(
    img_size=(32, 32), patch_size=8, in_chans=3, embed_dim=48, depth=2, num_heads=3, layer_scale=0.1, drop_path=0.0,
    smallest_block=2, vocab_size=96, mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip


def test_it_is_the_published_one_to_the_gradients(monkeypatch: pytest.MonkeyPatch):
    weights = {name.removeprefix("weights."): value for name, value in GOLDEN.items() if name.startswith("weights.")}
    model = BEiT(CONFIG)
    for block in model.backbone.blocks:
        block.mlp = Mlp(48, 96)  # narrower than any that this software makes
    model.double().load_state_dict({name: value.double() for name, value in weights.items()})

    def golden_tokens(images: Tensor, plan: MaskedPlan) -> Tensor:
        return GOLDEN["input.token_ids"].flatten()[plan.ids_hidden]

    monkeypatch.setattr(model, "tokens", golden_tokens)
    out = model(GOLDEN["input.image"].double(), GOLDEN["input.mask"].view(2, 4, 4))
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(out.logits, GOLDEN["out.logits_masked"], **exact)
    torch.testing.assert_close(out.loss, GOLDEN["out.loss"], **exact)
    out.loss.backward()
    gradients = {name: value.grad for name, value in model.state_dict(keep_vars=True).items()}
    expected = {name.removeprefix("grad."): value for name, value in GOLDEN.items() if name.startswith("grad.")}
    assert len(expected) == 4
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, **exact)


def test_its_masks_are_the_published_ones():
    config = emae.create_model("beit_vit_tiny_patch16").config
    noise = torch.rand(500, 196, generator=torch.Generator().manual_seed(0))
    assert torch.equal(config.planner()(noise).mask, blockwise_mask_from_noise(noise, (14, 14), 75, 16))


@pytest.mark.parametrize(("size", "scale"), [("base", 0.1), ("large", 1e-5)])
def test_what_it_begins_with(size: str, scale: float):
    with torch.device("meta"):
        config = emae.create_model(f"beit_vit_{size}_patch16").config
    assert (config.layer_scale, config.drop_path, config.vocab_size) == (scale, 0.1, 8192)
    tiny = dataclasses.replace(config, embed_dim=48, num_heads=3, depth=2, img_size=(32, 32), smallest_block=1)
    model = BEiT(tiny)
    assert torch.equal(model.backbone.blocks[1].gamma_2, torch.full((48,), scale))
    assert not model.backbone.rel_pos_bias.relative_position_bias_table.any()


def test_costs_are_the_papers():
    """Table 3, which counts the head on all patches; hidden ones alone need it."""
    rows = BEiTConfig.published()
    assert [row.gmacs for row in rows] == [18.8, 44.9, 63.2, 89.3]
    for row in rows:
        with torch.device("meta"):
            config = emae.create_model(row.model, **row.settings).config
        assert config.paper_gmacs() == pytest.approx(row.gmacs, rel=0.003)
        spared = 196 - 74.46  # masks of blocks hide so many (the published generator's mean)
        expected = config.paper_gmacs() - spared * config.embed_dim * 8192 / 1e9
        assert count_gmacs(config) == pytest.approx(expected, rel=0.001)
