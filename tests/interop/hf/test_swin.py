"""SimMIM to and from transformers' SwinForMaskedImageModeling, weights for weights."""

from dataclasses import replace

import pytest
import torch

from efficient_mae.interop import from_hf, load, to_hf
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

transformers = pytest.importorskip("transformers")

# Windows are shifted in the first two stages; in the last there is one.
CONFIG = SimMIMConfig(
    family="swin", img_size=(32, 32), in_chans=2, patch_size=2, embed_dim=8, depth=(2, 2, 1), num_heads=(1, 2, 4),
    window_size=4, mlp_ratio=3.0, mask_unit=8,
)  # fmt: skip


@pytest.fixture
def model() -> SimMIM:
    torch.manual_seed(0)
    model = SimMIM(CONFIG).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_loss_predictions_and_gradients_are_theirs(model: SimMIM, dtype: torch.dtype, tolerance: float):
    model, images = model.to(dtype), torch.randn(3, 2, 32, 32, dtype=dtype)
    theirs, plan = to_hf(model), model.plan(3, torch.Generator().manual_seed(0))
    ours, expected = model(images, plan), theirs(images, bool_masked_pos=plan.mask.flatten(1))
    # They divide by a count of pixels that is 1e-5 larger than it is.
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours.loss, expected.loss, **close)
    torch.testing.assert_close(ours.reconstruction, expected.reconstruction, **close)
    ours.loss.backward()
    expected.loss.backward()
    grads = to_hf(model)
    for parameter, mine in zip(grads.parameters(), to_hf(_of_gradients(model)).parameters(), strict=True):
        parameter.data = mine.data
    for (name, parameter), grad in zip(theirs.named_parameters(), grads.parameters(), strict=True):
        largest = max(1.0, float(parameter.grad.abs().max()))
        assert (parameter.grad - grad).abs().max() <= tolerance * largest, name


def _of_gradients(model: SimMIM) -> SimMIM:
    """A model whose weights are another's gradients."""
    other = SimMIM(model.config).to(model.mask_token.dtype)
    for parameter, source in zip(other.parameters(), model.parameters(), strict=True):
        parameter.data = source.grad.clone()
    return other


def test_there_and_back(model: SimMIM):
    again = from_hf(to_hf(model))
    assert again.config == replace(CONFIG, mask_ratio=0.6) and not again.training
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_folder_is_loaded(model: SimMIM, tmp_path):
    to_hf(model.float()).save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is SimMIM and torch.equal(again.mask_token, model.mask_token)


def test_what_cannot_be_is_one_line(model: SimMIM):
    for changed, message in (
        ({"family": "swinv2"}, "a SimMIM with a swinv2 encoder, and transformers' is with a Swin alone"),
        ({"img_size": (32, 64)}, "img_size=32x64: transformers' Swin takes square images only"),
        (
            {"window_size": 8},
            "window_size=8: transformers' Swin cannot run with windows larger than the 4 x 4 places",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            to_hf(SimMIM(replace(CONFIG, **changed)))
    theirs = to_hf(model)
    for name, value in (("hidden_act", "relu"), ("qkv_bias", False), ("encoder_stride", 4)):
        kept = getattr(theirs.config, name)
        setattr(theirs.config, name, value)
        with pytest.raises(ValueError, match=f"{name}={value}: a Swin of another architecture; SimMIM's has {kept}"):
            from_hf(theirs)
        setattr(theirs.config, name, kept)
    with pytest.raises(ValueError, match="an encoder alone"):
        to_hf(model.backbone)
