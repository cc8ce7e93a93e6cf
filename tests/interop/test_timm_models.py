from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.interop import load_snippet, load_statistics, save_encoder
from efficient_mae.interop.timm_models import save_timm
from tests.interop.conftest import STATISTICS


def test_timm_gives_the_same_features(model):
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            emae.to_timm(model).forward_features(images),
            model.backbone.forward_features(images),
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_printed_snippet_loads_the_encoder(model, encoder: Path):
    names: dict = {}
    exec(load_snippet(model.config, encoder), names)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features = names["vit"].eval().forward_features(images)
        torch.testing.assert_close(features, model.backbone.forward_features(images), rtol=1e-5, atol=1e-5)


def test_timms_own_models_take_the_encoder(tmp_path: Path):
    model = emae.create_model("mae_vit_tiny_patch16", decoder_depth=1).eval()
    save_encoder(tmp_path / "encoder.safetensors", model, STATISTICS)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = model.backbone.forward_features(images)
        torch.testing.assert_close(vit.eval().forward_features(images), ours, rtol=1e-4, atol=1e-4)


def test_timms_own_call_loads_the_folder(tmp_path: Path, model):
    save_timm(tmp_path, model, STATISTICS)
    vit = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        ours = model.backbone.forward_features(images)
        torch.testing.assert_close(vit.forward_features(images), ours, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vit(images), ours[:, 0], rtol=1e-5, atol=1e-5)
    data = timm.data.resolve_model_data_config(vit)
    assert data["input_size"] == (3, 32, 48)
    assert (tuple(data["mean"]), tuple(data["std"])) == (STATISTICS.mean, STATISTICS.std)
    # A head for fine-tuning; the encoder is untouched.
    tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7, global_pool="avg")
    assert tuned(images).shape == (2, 7)
    assert torch.equal(tuned.blocks[2].mlp.fc2.weight, model.backbone.blocks[2].mlp.fc2.weight)
    # And it is still one of ours.
    assert load_statistics(tmp_path) == STATISTICS and emae.load(tmp_path).img_size == (32, 48)
