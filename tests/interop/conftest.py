"""A small model whose every parameter shows, and files of it."""

from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.engine.storage.durable import save_tensors
from efficient_mae.interop import ImageStatistics, file_metadata, save_encoder
from efficient_mae.methods.mae import MaskedAutoencoder

STATISTICS = ImageStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def small_model(**settings) -> MaskedAutoencoder:
    """A model with random weights, biases and norms too, so that a wrong one shows."""
    torch.manual_seed(0)
    settings = {"img_size": 32, "depth": 2, "decoder_depth": 2, **settings}
    model = emae.create_model("mae_vit_tiny_patch8", **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def as_wide(weights: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Weights whose MLPs are twice as wide as the model, brought to the usual four times by zeros: the same model."""
    made = dict(weights)
    for name, value in weights.items():
        if name.endswith(("fc1.weight", "fc1.bias", "fc2.weight")):
            more = (0, 2 * width) if name.endswith(("fc2.weight", "bias")) else (0, 0, 0, 2 * width)
            made[name] = torch.nn.functional.pad(value, more)
    return made


def save_model(file: Path, model: MaskedAutoencoder) -> Path:
    """As a checkpoint's `model.safetensors`."""
    save_tensors(file, model.state_dict(), file_metadata(model.config, STATISTICS))
    return file


@pytest.fixture(scope="package")
def model():
    """Rectangular images."""
    return small_model(img_size=(32, 48), depth=3, decoder_depth=1)


@pytest.fixture(scope="package")
def encoder(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "encoder.safetensors"
    save_encoder(file, model, STATISTICS)
    return file
