"""A model that starts from trained weights: numbers counted here, tensor by tensor."""

import pytest
import torch

import efficient_mae as emae
from efficient_mae.interop import Trained, start_from
from tests.interop.conftest import STATISTICS, small_model


def new_model(**settings):
    torch.manual_seed(9)
    settings = {"img_size": 32, "depth": 2, "decoder_depth": 2, **settings}
    return emae.create_model("mae_vit_tiny_patch8", **settings)


def numbers(model) -> dict[str, int]:
    return {name: value.numel() for name, value in model.state_dict().items()}


def started(old, channels: str | None = None, **settings):
    model, random = new_model(**settings), new_model(**settings).state_dict()
    start = start_from(model, Trained(old, STATISTICS), "w", channels)
    weights, theirs = model.state_dict(), old.state_dict()
    assert all(torch.equal(weights[name], theirs[name]) for name in start.taken)
    assert all(torch.equal(weights[name], random[name]) for name in start.new)
    assert start.taken.keys() | start.adapted.keys() | start.new.keys() == weights.keys()
    assert {**start.taken, **start.adapted, **start.new} == numbers(model)
    return model, start


def test_the_same_model_is_taken_whole():
    old = small_model()
    _, start = started(old)
    assert start.taken == numbers(old) and not (start.adapted or start.new or start.left_out)


def test_from_an_encoder_alone_the_decoder_is_new():
    encoder = emae.adapt_encoder(small_model())
    model, start = started(encoder)
    assert start.taken == numbers(encoder)
    assert start.new.keys() == {name for name in numbers(model) if name.startswith(("decoder", "mask_token"))}
    total = sum(start.taken.values())
    assert start.text.startswith(
        f"{total:,} parameters taken, 0 adapted, {sum(start.new.values()):,} new, at random ("
    )


def test_another_size_patch_and_number_of_channels():
    old = small_model()
    model, start = started(old, "mean", img_size=(48, 32), in_chans=2)
    assert start.adapted.keys() == {"pos_embed", "patch_embed.proj.weight", "decoder_pos_embed"}
    assert start.new.keys() == start.left_out.keys() == {"decoder_pred.weight", "decoder_pred.bias"}
    expected = emae.adapt_encoder(old, (48, 32), in_chans=2, channels="mean").state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    with pytest.raises(
        ValueError, match="weights=w: in_chans=2, but the weights are for 3 channels: .* channels=mean"
    ):
        started(old, in_chans=2)


def test_another_depth_and_another_decoder():
    model, start = started(small_model(depth=2), depth=3, decoder_embed_dim=64)
    assert all(name.startswith(("blocks.2.", "decoder", "mask_token")) for name in start.new)
    assert {name for name in start.left_out if not name.startswith("decoder")} == {"mask_token"}
    _, start = started(small_model(depth=3), depth=2)
    assert all(name.startswith("blocks.2.") for name in start.left_out) and not start.new
    _, start = started(small_model(), decoder_num_heads=2)
    assert start.new.keys() == start.left_out.keys() == {name for name in numbers(model) if "decoder_blocks" in name}


def test_a_swin_of_another_size_is_proposed_by_its_name():
    base = emae.create_model("simmim_swin_base_window4", img_size=64, depth=(1, 1))
    for depth, said in (((1, 1), "tiny_window4 --depth 1,1"), ((2, 2, 6, 2), "tiny_window4")):
        tiny = emae.create_model("simmim_swin_tiny_window4", img_size=64, depth=depth)
        with pytest.raises(ValueError, match=f"less than half: .*; give --model simmim_swin_{said}$"):
            start_from(base, Trained(tiny.backbone, STATISTICS), "w")


def test_what_does_not_fit_is_refused_by_name():
    encoder = emae.create_model("mae_vit_small_patch8", img_size=32, depth=2)
    with pytest.raises(ValueError, match=r"weights=w: 0 of .* less than half: cls_token is \(1, 1, 384\) there and "
                       r"\(1, 1, 192\) here; .*; give --model mae_vit_small_patch8 --depth 2"):  # fmt: skip
        started(encoder)
    with pytest.raises(ValueError, match=r"less than half: blocks.1.norm1.weight is \(192,\) there and missing here"):
        started(small_model(depth=12), depth=1)
    broken = small_model()
    broken.backbone.norm.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="weights=w: norm.bias hold numbers that aren't finite"):
        started(broken)
    heads = emae.adapt_encoder(small_model())
    heads.num_heads = 6
    with pytest.raises(ValueError, match="of 6 heads, and this model has 3"):
        started(heads)
