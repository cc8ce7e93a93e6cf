from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import efficient_mae as emae
from efficient_mae.interop import (
    ImageStatistics,
    file_metadata,
    load_autoencoder,
    load_snippet,
    load_statistics,
    save_encoder,
)

STATISTICS = ImageStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", img_size=(32, 48), depth=3, decoder_depth=1).eval()
    with torch.no_grad():  # biases and norms too, so that a wrong one shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def encoder(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "encoder.safetensors"
    save_encoder(file, model, STATISTICS)
    return file


def test_timm_gives_the_same_features(model):
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            emae.to_timm(model).forward_features(images), model.forward_features(images), rtol=1e-5, atol=1e-5
        )


def test_the_printed_snippet_loads_the_encoder(model, encoder: Path):
    names: dict = {}
    exec(load_snippet(model.config, encoder), names)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features = names["vit"].eval().forward_features(images)
        torch.testing.assert_close(features, model.forward_features(images), rtol=1e-5, atol=1e-5)


def test_timms_own_models_take_the_encoder(tmp_path: Path):
    model = emae.create_model("mae_vit_tiny_patch16", decoder_depth=1).eval()
    save_encoder(tmp_path / "encoder.safetensors", model, STATISTICS)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = model.forward_features(images)
        torch.testing.assert_close(vit.eval().forward_features(images), ours, rtol=1e-4, atol=1e-4)


def test_features_of_visible_patches_are_the_encoders(model):
    images = torch.randn(2, 3, 32, 48)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model.forward_features(images, everything), model.forward_features(images))


def test_load_gives_back_the_encoder_and_its_statistics(model, encoder: Path):
    loaded = emae.load(encoder)
    assert not loaded.training and load_statistics(encoder) == STATISTICS
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_decoder_is_needed(encoder: Path):
    with pytest.raises(ValueError, match="holds an encoder alone"):
        load_autoencoder(encoder)


def test_what_is_no_model(tmp_path: Path, model):
    with pytest.raises(ValueError, match="no such file or directory"):
        emae.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        emae.load(tmp_path)
    (tmp_path / "text.safetensors").write_text("once upon a time")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        emae.load(tmp_path / "text.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="doesn't describe a model of efficient-mae"):
        emae.load(tmp_path / "other.safetensors")
    weights = {name: value for name, value in model.state_dict().items() if name != "norm.bias"}
    save_file(weights, tmp_path / "less.safetensors", file_metadata(model.config, STATISTICS))
    with pytest.raises(ValueError, match="another architecture, without norm.bias"):
        emae.load(tmp_path / "less.safetensors")
