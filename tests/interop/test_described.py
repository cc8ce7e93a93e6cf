"""Weights beside another library's config: folders and cache made by timm and transformers themselves."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

import efficient_mae as emae
from efficient_mae.interop import load_statistics, read_trained
from tests.interop.test_state_dicts import PICTURES, same_features

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def test_transformers_vit_with_a_head(tmp_path: Path):
    vit = shaken(ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=384, num_labels=5)))
    vit.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    with torch.no_grad():
        same_features(tmp_path, vit.vit(PICTURES).last_hidden_state)
    assert emae.load(tmp_path).num_heads == 4  # not the usual ones of a width
    assert load_statistics(tmp_path).mean == (0.1, 0.2, 0.3)
    assert read_trained(tmp_path).left_out == {"classifier.weight": 480, "classifier.bias": 5}


def test_transformers_dinov2(tmp_path: Path):
    model = shaken(Dinov2Model(Dinov2Config(**SIZES, layerscale_value=0.3)))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        same_features(tmp_path, model(PICTURES).last_hidden_state)


def rewrite(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn=True"),
        ({"layer_norm_eps": 0.1}, "layer_norm_eps=0.1"),
        ({"num_attention_heads": "x"}, "num_attention_heads='x'"),
        ({"image_size": ["a", "b"]}, r"image_size=\['a', 'b'\]: must be one number or two"),
        ({"num_attention_heads": 5}, "does not divide the width 96"),
        ({"model_type": "clip"}, "model_type 'clip'; only vit_mae, beit, swin, vit and dinov2 can be read"),
    ],
)
def test_transformers_models_of_another_architecture(change: dict, said: str, tmp_path: Path):
    Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=said):
        emae.load(tmp_path)


def test_channels_are_those_of_the_weights(tmp_path: Path):
    Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(tmp_path)
    rewrite(tmp_path, num_channels="many")
    assert emae.load(tmp_path).in_chans == 3 and load_statistics(tmp_path).mean == (0.485, 0.456, 0.406)


def timm_folder(folder: Path, name: str = "vit_tiny_patch16_224", **arguments) -> timm.models.VisionTransformer:
    """As `timm.models.push_to_hf_hub` lays one out."""
    vit = shaken(timm.create_model(name, num_classes=6, **arguments))
    timm.models.save_for_hf(vit, folder, model_args=arguments, safe_serialization="both")
    return vit


@pytest.mark.parametrize("scheme", ["", "local-dir:"])
def test_timms_folder(scheme: str, tmp_path: Path):
    arguments = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 96, "num_heads": 6}
    vit = timm_folder(tmp_path, **arguments)
    rewrite(tmp_path, pretrained_cfg={"mean": [0.3] * 3, "std": [0.2] * 3})
    same_features(f"{scheme}{tmp_path}", vit.forward_features(PICTURES).detach())
    encoder = emae.load(f"{scheme}{tmp_path}")
    assert encoder.num_heads == 6 and load_statistics(tmp_path).mean == (0.3,) * 3
    for odd in ({"mean": [0.3] * 2}, {"std": [0.2, 0.2, 0.0]}, {"mean": 0.3}):
        rewrite(tmp_path, pretrained_cfg={"mean": [0.3] * 3, "std": [0.2] * 3} | odd)
        with pytest.raises(ValueError, match=f"{tmp_path}.*: mean=.* and std=.* must be 3 numbers each"):
            load_statistics(f"{scheme}{tmp_path}")


def test_a_grid_whose_positions_and_class_token_make_a_square(tmp_path: Path):
    """2 x 4 patches and a class token are as many as 3 x 3 patches without one."""
    pictures = PICTURES[:, :, :16]
    vit = timm_folder(tmp_path / "timm", img_size=[16, 32], patch_size=8, depth=1, embed_dim=96, num_heads=4)
    model = shaken(ViTModel(ViTConfig(**SIZES | {"image_size": [16, 32]}, intermediate_size=384)))
    model.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        for folder, theirs in (("timm", vit.forward_features(pictures)), ("hf", model(pictures).last_hidden_state)):
            torch.testing.assert_close(emae.load(tmp_path / folder)(pictures), theirs, rtol=1e-3, atol=1e-3)


def test_timms_models_of_another_architecture(tmp_path: Path):
    timm_folder(tmp_path / "clip", "vit_base_patch32_clip_quickgelu_224", img_size=32, depth=1)
    with pytest.raises(ValueError, match="vit_base_patch32_clip_quickgelu_224 is no plain ViT"):
        emae.load(tmp_path / "clip")
    timm_folder(tmp_path / "resnet", "resnet10t")
    with pytest.raises(ValueError, match="resnet10t is no plain ViT"):
        emae.load(tmp_path / "resnet")
    timm_folder(tmp_path / "vit", img_size=32, depth=1)
    rewrite(tmp_path / "vit", model_args={"act_layer": "relu"})
    with pytest.raises(ValueError, match="act_layer='relu'"):
        emae.load(tmp_path / "vit")
    rewrite(tmp_path / "vit", model_args={}, architecture="vit_of_nobody")
    with pytest.raises(ValueError, match="timm makes no 'vit_of_nobody'"):
        emae.load(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "vit" / "pytorch_model.bin").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no weights"):
        emae.load(tmp_path / "vit")


def test_timms_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Laid out as the hub's client does; nothing is asked of the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    name = "vit_base_patch16_224.mae"
    with pytest.raises(ValueError, match=f"timm:{name}: not in the local cache.*pretrained=True"):
        emae.load(f"timm:{name}")
    repository = tmp_path / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    vit = shaken(timm.create_model("vit_base_patch16_224", num_classes=0))
    save_file(vit.state_dict(), snapshot / "model.safetensors")
    encoder = emae.load(f"timm:{name}")
    pictures = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures), vit.forward_features(pictures), rtol=1e-3, atol=1e-3)
    assert load_statistics(f"timm:{name}").mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match=r"no weights of that name; did you mean timm:vit_base_patch16_224.mae\?"):
        emae.load("timm:vit_base_patch16_224.mea")
    with pytest.raises(ValueError, match=r"no model of timm's; did you mean timm:vit_base_patch16_224\?"):
        emae.load("timm:vit_bse_patch16_224")
