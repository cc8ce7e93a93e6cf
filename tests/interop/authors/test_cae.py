"""Files in the layout of the published CAE: the golden values' weights, as they were named there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import efficient_mae as emae
from efficient_mae.backbones.sizes import Size
from efficient_mae.interop import ImageStatistics, load_statistics
from efficient_mae.interop.state_dicts import SIZES
from efficient_mae.methods.cae import CAE
from tests.interop.conftest import as_wide

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "cae.safetensors")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Under their names, the second encoder's among them; heads are told by the width, of which they have another."""
    monkeypatch.setitem(SIZES, "golden", Size(48, 2, 3))
    weights = {name.removeprefix("weights."): value for name, value in GOLDEN.items() if name.startswith("weights.")}
    return as_wide(weights, 48)


def write(file: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model": weights, "epoch": 799}, file)
    return file


def test_a_pretraining_file(weights: dict[str, Tensor], tmp_path: Path):
    file = write(tmp_path / "cae.pth", weights)
    model = emae.load(file)
    assert type(model) is CAE and not model.training
    config = model.config
    assert (config.depth, config.regressor_depth, config.decoder_depth, config.vocab_size) == (2, 2, 2, 96)
    assert (config.img_size, config.patch_size, config.tokenizer) == ((32, 32), 8, None)
    plan = config.planner().plan(GOLDEN["input.mask"].view(2, 4, 4))
    with torch.no_grad():
        visible = model.double().backbone.forward_features(GOLDEN["input.image"].double(), plan.ids_keep)
        latent, logits = model.predict(visible[:, 1:], plan)
        own = model.latent_targets(GOLDEN["input.image"].double(), plan)
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(visible, GOLDEN["out.latent_visible"], **exact)
    torch.testing.assert_close(latent, GOLDEN["out.latent_pred"], **exact)
    torch.testing.assert_close(logits, GOLDEN["out.logits"], **exact)
    # Not those of the second encoder that the file holds too.
    torch.testing.assert_close(own, GOLDEN["out.latent_target_second_pass"], **exact)
    assert load_statistics(file) == ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_files_of_something_else(weights: dict[str, Tensor], tmp_path: Path):
    def refused(weights: dict[str, Tensor], what: str):
        with pytest.raises(ValueError, match=what):
            emae.load(write(tmp_path / "file.pth", weights))

    refused({name: x for name, x in weights.items() if "regressor_blocks" not in name}, "isn't as in CAE")
    refused({name: x for name, x in weights.items() if name != "encoder.pos_embed"}, "pos_embed.* isn't as in CAE")
    refused(weights | {"pretext_neck.norm.bias": torch.ones(7)}, r"regressor_norm.bias is \(7,\) and not \(48,\)")
    refused(weights | {"pretext_neck.decoder_embed.weight": torch.ones(48, 48)}, "with decoder_embed.weight")
    with pytest.raises(ValueError, match="holds a model of cae; efficient_mae.load takes it"):
        emae.from_mae_checkpoint(write(tmp_path / "file.pth", weights))
