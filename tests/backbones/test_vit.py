"""The ViT as methods on whole images use it, beside timm's."""

import pytest
import torch

from efficient_mae.backbones import VisionTransformer
from efficient_mae.interop import to_timm

ARGUMENTS = {"img_size": (8, 12), "patch_size": 4, "in_chans": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**ARGUMENTS).double().eval()


def test_a_mask_token_stands_in_place_of_hidden_patches(vit: VisionTransformer):
    images, mask = torch.randn(3, 2, 8, 12).double(), torch.rand(3, 2, 3) < 0.5
    token = torch.randn(1, 1, 12, dtype=torch.float64, requires_grad=True)
    ours = vit.forward_masked(images, mask, token)
    theirs = to_timm(vit)
    theirs.patch_embed.register_forward_hook(
        lambda module, inputs, patches: patches * ~mask.flatten(1)[..., None] + token * mask.flatten(1)[..., None]
    )
    expected = theirs.forward_features(images)[:, 1:].view(3, 2, 3, 12)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), token)[0] for x in (ours, expected)))


def test_nothing_of_a_hidden_patch_is_seen(vit: VisionTransformer):
    images, mask = torch.randn(1, 2, 8, 12).double(), torch.zeros(1, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = True
    other = images.clone()
    other[:, :, 4:, 8:] = 7.0
    token = torch.zeros(1, 1, 12).double()
    torch.testing.assert_close(vit.forward_masked(images, mask, token), vit.forward_masked(other, mask, token))
    assert (vit.forward_masked(other, ~mask, token) - vit.forward_masked(images, ~mask, token)).abs().max() > 1e-3


def test_features_of_images(vit: VisionTransformer):
    images = torch.randn(2, 2, 8, 12).double()
    tokens = vit.forward_features(images)
    torch.testing.assert_close(vit.pooled(images, "token"), tokens[:, 0])
    torch.testing.assert_close(vit.pooled(images), tokens[:, 1:].mean(dim=1))
    with pytest.raises(ValueError, match="pool='max': of a vit encoder it must be avg or token"):
        vit.pooled(images, "max")
    with pytest.raises(ValueError, match=r"images are 2 x 2 x 8 x 8; this model takes B x 2 x 8 x 12"):
        vit.forward_masked(images[..., :8], torch.zeros(2, 2, 3, dtype=torch.bool), torch.zeros(1, 1, 12))
