"""Swin Transformers as methods and tasks use them, beside timm's."""

import pytest
import torch

from efficient_mae.backbones import Swin, SwinV2
from efficient_mae.backbones.base import Backbone
from efficient_mae.interop import adapt_encoder, to_timm

SIZE = {"img_size": (32, 64), "in_chans": 2, "embed_dim": 8, "depth": (2, 2), "num_heads": (1, 2), "window_size": 4}
KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])


def make(kind: type[Backbone], **changed) -> Backbone:
    torch.manual_seed(0)
    encoder = kind(**SIZE | changed).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@KINDS
def test_a_mask_token_stands_in_place_of_hidden_patches(kind: type[Backbone]):
    encoder, images = make(kind), torch.randn(2, 2, 32, 64).double()
    mask, token = torch.rand(2, 8, 16) < 0.6, torch.randn(1, 1, 8, dtype=torch.float64, requires_grad=True)
    hidden = mask[..., None].double()
    theirs = to_timm(encoder)
    theirs.patch_embed.register_forward_hook(lambda module, inputs, x: x * (1 - hidden) + token * hidden)
    pair = encoder.forward_masked(images, mask, token), theirs.forward_features(images)
    assert pair[0].shape == (2, 4, 8, 16) and encoder.strides == (4, 8) and encoder.dims == (8, 16)
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), token)[0] for x in pair))
    torch.testing.assert_close(encoder.pooled(images), to_timm(encoder).forward_features(images).mean(dim=(1, 2)))


@KINDS
def test_a_larger_image_has_larger_windows(kind: type[Backbone]):
    encoder = make(kind)
    larger = adapt_encoder(encoder, img_size=(64, 128))
    assert larger.window_size == 8 and larger.grid_size == (16, 32)
    same = adapt_encoder(encoder, img_size=(64, 64))  # not the same share both ways
    assert same.window_size == 4
    images = torch.randn(1, 2, 32, 64).double()
    torch.testing.assert_close(adapt_encoder(encoder).pooled(images), encoder.pooled(images))
    # What grows with the offset still does, and its middle and ends stay.
    if kind is Swin:
        name = "layers.0.blocks.1.attn.relative_position_bias_table"
        ramp = torch.linspace(-3, 3, 7).double().repeat_interleave(7)[:, None]
        encoder.get_parameter(name).data = ramp.clone()
        found = adapt_encoder(encoder, img_size=(64, 128)).get_parameter(name).view(15, 15)
        assert (found.diff(dim=0) > -1e-6).all() and found.std(dim=1).max() < 1e-6
        torch.testing.assert_close(found[[0, 7, 14], 0], torch.tensor([-3.0, 0, 3]).double(), atol=1e-6, rtol=0)


@KINDS
def test_windows_that_are_cut_to_a_narrow_grid_grow_with_it(kind: type[Backbone]):
    encoder = make(kind, img_size=(16, 32), window_size=8, depth=(2,), num_heads=(1,))
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    if kind is Swin:  # 7 x 15 offsets, by rows and by columns
        encoder.get_parameter(name).data = torch.linspace(-3, 3, 7).double().repeat_interleave(15)[:, None]
    larger = adapt_encoder(encoder, img_size=(32, 64))
    assert larger.get_submodule("layers.0.blocks.1.attn").window_size == (8, 16)
    if kind is Swin:
        found = larger.get_parameter(name).view(15, 31)
        assert (found.diff(dim=0) > -1e-6).all() and found.std(dim=1).max() < 1e-6
        torch.testing.assert_close(found[[0, 7, 14], 0], torch.tensor([-3.0, 0, 3]).double(), atol=1e-6, rtol=0)


def test_what_cannot_be_is_one_line():
    for changed, message in (
        ({"window_size": 3}, "window_size=3 does not divide the 8 x 16 places of stage 1 of images of 32x64: take"),
        (
            {"img_size": (36, 64), "window_size": 16},
            "img_size=36x64: 9 x 16 patches cannot be halved 1 times, as 2 stages do: take",
        ),
        ({"num_heads": (1,)}, r"num_heads=\(1,\): must be one number for each of 2 stages"),
        ({"num_heads": (1, 3)}, r"num_heads=\(1, 3\): 3 does not divide the width 16"),
        ({"depth": (0, 2)}, r"depth\[0\]=0: must be at least 1"),
        ({"img_size": 30}, "patch_size=4 does not divide img_size=30x30"),
    ):
        with pytest.raises(ValueError, match=message):
            Swin(**SIZE | changed)
    assert Swin(**SIZE | {"window_size": 16}).layers[0].blocks[0].window_size == (8, 16)  # of the grid's size at most
    with pytest.raises(ValueError, match="pool='token': of a swin encoder it must be avg"):
        make(Swin).pooled(torch.zeros(1, 2, 32, 64), "token")
    for kind in (Swin, SwinV2):
        encoder = make(kind)
        for features in (encoder.pooled, encoder.feature_map, encoder.forward_features):
            with pytest.raises(ValueError, match="images are 1 x 2 x 32 x 32; this model takes B x 2 x 32 x 64"):
                features(torch.zeros(1, 2, 32, 32).double())
