"""BEiT's encoder beside values of the published one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers.mlp import Mlp

from efficient_mae.backbones.beit import Beit

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "beit.safetensors")
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def test_tokens_of_masked_images_are_the_published_ones():
    weights = {name.removeprefix("weights."): value.double() for name, value in GOLDEN.items()}
    encoder = Beit(**SIZE)
    for block in encoder.blocks:
        block.mlp = Mlp(48, 96)  # narrower than any that this software makes
    encoder.double()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    assert torch.equal(encoder.rel_pos_bias.relative_position_index, GOLDEN["rel_pos_index"].long())
    images, mask = GOLDEN["input.image"].double(), GOLDEN["input.mask"].view(2, 4, 4)
    latent = encoder.forward_masked(images, mask, weights["mask_token"])
    expected = GOLDEN["out.features"][:, 1:].view(2, 4, 4, 48)
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-12)
    nothing = encoder.forward_masked(images, torch.zeros_like(mask), weights["mask_token"])
    whole = encoder.forward_features(images)
    torch.testing.assert_close(whole[:, 1:].view(2, 4, 4, 48), nothing, rtol=0, atol=0)
    torch.testing.assert_close(encoder.pooled(images, "token"), whole[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(encoder.pooled(images), whole[:, 1:].mean(dim=1), rtol=0, atol=0)


def test_blocks_are_skipped_alike_when_they_are_computed_again():
    encoder = Beit(**SIZE, drop_path_rate=0.5).train()
    images = torch.randn(8, 3, 32, 32)

    def gradient(recompute: bool) -> torch.Tensor:
        encoder.set_grad_checkpointing(recompute)
        torch.manual_seed(0)
        return torch.autograd.grad(encoder.forward_features(images).square().sum(), encoder.cls_token)[0]

    kept = gradient(False)
    torch.testing.assert_close(gradient(True), kept, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    other = torch.autograd.grad(encoder.forward_features(images).square().sum(), encoder.cls_token)[0]
    assert not torch.allclose(other, kept)


def test_what_it_cannot_be_or_take_is_one_line():
    with pytest.raises(ValueError, match="num_heads=5 does not divide the width 48"):
        Beit(**SIZE | {"num_heads": 5})
    with pytest.raises(ValueError, match="patch_size=7 does not divide img_size=32x32"):
        Beit(**SIZE | {"patch_size": 7})
    with pytest.raises(ValueError, match="depth=0: must be at least 1"):
        Beit(**SIZE | {"depth": 0})
    with pytest.raises(ValueError, match="images are 1 x 3 x 24 x 32; this model takes B x 3 x 32 x 32"):
        Beit(**SIZE).forward_features(torch.zeros(1, 3, 24, 32))
