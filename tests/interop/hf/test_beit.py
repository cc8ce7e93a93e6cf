"""transformers' BeitForMaskedImageModeling, both ways: the same logits, loss and gradients for the same mask."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, BeitConfig, BeitForMaskedImageModeling

import efficient_mae as emae
from efficient_mae.interop import load_config
from efficient_mae.interop.hf.vit_mae import save_hf
from efficient_mae.methods.beit import BEiT
from tests.interop.conftest import STATISTICS


def small_beit() -> BEiT:
    """A model with random weights, biases and norms too, so that a wrong one shows."""
    torch.manual_seed(0)
    model = emae.create_model("beit_vit_tiny_patch8", img_size=32, depth=2, smallest_block=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_same_loss_logits_and_gradients(dtype: torch.dtype, exact: float, monkeypatch: pytest.MonkeyPatch):
    ours = small_beit().to(dtype)
    theirs = emae.to_hf(ours)
    images, mask = torch.randn(3, 3, 32, 32, dtype=dtype), torch.rand(3, 4, 4) < 0.4
    tokens = torch.randint(0, 8192, (3, 4, 4))
    monkeypatch.setattr(ours, "tokens", lambda images, plan: tokens.flatten()[plan.ids_hidden])
    out = ours(images, mask)
    expected = theirs(images, bool_masked_pos=mask.flatten(1), labels=tokens[mask])
    close = {"rtol": exact, "atol": exact}
    torch.testing.assert_close(out.loss, expected.loss, **close)
    torch.testing.assert_close(out.logits, expected.logits[mask.flatten(1)], **close)
    out.loss.backward()
    expected.loss.backward()
    # Each of their gradients is put where a model of ours would have that weight.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    for name, gradient in emae.from_hf(theirs).named_parameters():
        found: Tensor = ours.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_there_and_back_is_the_same_model_to_the_bit():
    ours = small_beit()
    hf = emae.to_hf(ours)
    back = emae.from_hf(hf)
    assert not back.training and emae.from_hf(emae.to_hf(small_beit().double())).mask_token.dtype == torch.float64
    for theirs, mine in ((back, ours), (emae.to_hf(back), hf)):
        theirs, mine = theirs.state_dict(), mine.state_dict()
        assert theirs.keys() == mine.keys() and all(torch.equal(value, mine[name]) for name, value in theirs.items())
    same = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "vocab_size", "layer_scale", "drop_path")
    assert all(getattr(back.config, name) == getattr(ours.config, name) for name in same)


def test_folders(tmp_path: Path):
    ours, images = small_beit(), torch.randn(2, 3, 32, 32)
    save_hf(tmp_path, ours, STATISTICS)
    with torch.no_grad():
        whole = BeitForMaskedImageModeling.from_pretrained(tmp_path).eval()
        latent = whole.layernorm(whole.beit(images).last_hidden_state)
        torch.testing.assert_close(latent, ours.backbone.forward_features(images), rtol=1e-5, atol=1e-5)
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "beit"
    loaded = emae.load(tmp_path)
    assert type(loaded) is BEiT and torch.equal(loaded.lm_head.weight, ours.lm_head.weight)
    assert load_config(tmp_path).vocab_size == 8192


@pytest.mark.parametrize(
    "changed",
    [
        {"use_shared_relative_position_bias": False},
        {"use_relative_position_bias": True},
        {"use_absolute_position_embeddings": True},
        {"use_mask_token": False},
        {"intermediate_size": 100},
        {"layer_norm_eps": 1e-3},
    ],
)
def test_another_architecture_is_refused_by_name(changed: dict):
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    usual = {"intermediate_size": 192, "use_mask_token": True, "use_shared_relative_position_bias": True}
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name}=.*: a Beit of another architecture"):
        emae.from_hf(BeitForMaskedImageModeling(BeitConfig(**sizes | usual | changed)))


def test_images_that_are_not_square():
    model = emae.create_model("beit_vit_tiny_patch8", img_size=(32, 16), depth=1)
    with pytest.raises(ValueError, match="img_size=32x16: transformers' Beit takes square images only"):
        emae.to_hf(model)
