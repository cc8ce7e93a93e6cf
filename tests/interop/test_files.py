import json
from pathlib import Path

import pytest
import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import save_file

import efficient_mae as emae
from efficient_mae.interop import (
    adapt_encoder,
    file_metadata,
    load_config,
    load_statistics,
    load_whole,
    save_encoder,
)
from efficient_mae.methods.mae import MAEConfig
from tests.interop.conftest import STATISTICS, save_model


def test_features_of_visible_patches_are_the_encoders(model):
    images = torch.randn(2, 3, 32, 48)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(
        model.backbone.forward_features(images, everything), model.backbone.forward_features(images)
    )


def test_load_gives_back_the_encoder_and_its_statistics(model, encoder: Path):
    loaded = emae.load(encoder)
    assert not loaded.training and load_statistics(encoder) == STATISTICS
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_decoder_is_needed(encoder: Path):
    with pytest.raises(ValueError, match="holds an encoder alone"):
        load_whole(encoder)


def test_what_is_no_model(tmp_path: Path, model):
    with pytest.raises(ValueError, match="no such file or directory"):
        emae.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        emae.load(tmp_path)
    (tmp_path / "text.safetensors").write_text("once upon a time")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        emae.load(tmp_path / "text.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match="an architecture that can't be told: no patch_embed.proj.weight as in a plain ViT among a"
    ):
        emae.load(tmp_path / "other.safetensors")
    weights = {name: value for name, value in model.state_dict().items() if name != "norm.bias"}
    save_file(weights, tmp_path / "less.safetensors", file_metadata(model.config, STATISTICS))
    with pytest.raises(ValueError, match="another architecture, without norm.bias"):
        emae.load(tmp_path / "less.safetensors")


def test_a_folder_of_a_file_that_is_not_looked_for(tmp_path: Path):
    with pytest.raises(ValueError, match="encoder.safetensors; give a run directory, a checkpoint or an export"):
        emae.load(tmp_path)
    (tmp_path / "step-9.pth").touch()
    with pytest.raises(ValueError, match=r"encoder.safetensors; give the file itself, .*/step-9.pth"):
        emae.load(tmp_path)


def test_an_adapted_encoder_is_saved_and_loaded(tmp_path: Path, model):
    adapted = adapt_encoder(model, img_size=(24, 40))
    save_encoder(tmp_path / "encoder.safetensors", adapted, STATISTICS)
    loaded = emae.load(tmp_path)
    with pytest.raises(ValueError, match="describes an encoder alone"):
        load_config(tmp_path)
    assert loaded.img_size == (24, 40) and load_statistics(tmp_path) == STATISTICS
    assert all(torch.equal(value, adapted.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_config_of_a_file(tmp_path: Path, model, encoder: Path):
    assert load_config(save_model(tmp_path / "model.safetensors", model)) == model.config == load_config(encoder)


@pytest.mark.parametrize("name", ["gamma", "mask_ratio", "beta", "in_chans", "decoder_depth", "norm_pix_loss"])
def test_a_setting_that_a_file_lacks_is_not_guessed(name: str):
    config = emae.create_model("mae_vit_tiny_patch4", img_size=16, depth=1, decoder_depth=1).config
    header = config.to_dict()
    assert MAEConfig.from_dict(header) == config
    early = {key: value for key, value in header.items() if key not in ("difficulty", "schedule")}
    assert MAEConfig.from_dict(early) == config
    with pytest.raises(KeyError, match=name):
        MAEConfig.from_dict({key: value for key, value in header.items() if key != name})


def test_a_classifier_of_the_first_versions_says_how_its_images_are_normalised(tmp_path: Path):
    vit = timm_vit.VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=2)
    stated = {"classes": ["cat", "dog"], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    for name, header in (("whole", stated), ("odd", ["cat", "dog"]), ("less", {"classes": [], "mean": [0.1]})):
        save_file(vit.state_dict(), tmp_path / name, {"efficient_mae_classifier": json.dumps(header)})
    assert torch.equal(emae.load(tmp_path / "whole").blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
    assert load_statistics(tmp_path / "whole") == STATISTICS
    for name in ("odd", "less"):
        with pytest.raises(ValueError, match="its header describes no classifier of efficient-mae"):
            load_statistics(tmp_path / name)
