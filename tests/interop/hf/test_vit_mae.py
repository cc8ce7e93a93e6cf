"""transformers' ViTMAE, both ways, and folders of it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, ViTMAEConfig, ViTMAEForPreTraining

import efficient_mae as emae
from efficient_mae.interop import ImageStatistics, load_config, load_statistics
from efficient_mae.interop.hf.vit_mae import save_hf
from efficient_mae.methods.mae import MaskedAutoencoder
from tests.interop.conftest import STATISTICS, small_model


@pytest.fixture(scope="module")
def mae():
    return small_model(gamma=0, beta=None, mask_ratio=0.75, decoder_embed_dim=64)


@pytest.fixture(scope="module")
def folder(mae, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    save_hf(path, mae, STATISTICS)
    return path


def check_loss(ours, theirs):
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images, noise=torch.rand(4, 16))
        out = ours(images, expected.mask.bool().view(4, 4, 4))
    assert (out.loss / expected.loss - 1).abs() < 1e-5
    torch.testing.assert_close(out.prediction, expected.logits[expected.mask.bool()], rtol=1e-5, atol=1e-5)


def same_bits(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_same_loss_for_the_same_mask(norm_pix_loss: bool):
    ours = small_model(gamma=0, beta=None, norm_pix_loss=norm_pix_loss, mask_ratio=0.6)
    check_loss(ours, emae.to_hf(ours))


def test_there_and_back_is_the_same_model_to_the_bit(mae):
    hf = emae.to_hf(mae)
    back = emae.from_hf(hf)
    assert same_bits(back, mae) and back.config == mae.config and not back.training
    assert same_bits(emae.to_hf(back), hf)
    assert emae.from_hf(emae.to_hf(small_model().double())).mask_token.dtype == torch.float64
    weighted = emae.from_hf(hf, gamma=0.6, beta=26.0).config
    assert (weighted.gamma, weighted.beta) == (0.6, 26.0)


def test_their_own_loading_calls_take_the_folder(mae, folder: Path):
    check_loss(mae, ViTMAEForPreTraining.from_pretrained(folder).eval())
    encoder = AutoModel.from_pretrained(folder, mask_ratio=0.0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        torch.testing.assert_close(tokens, mae.backbone.forward_features(images), rtol=1e-5, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(folder)
    picture = torch.full((3, 50, 60), 51, dtype=torch.uint8)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    expected = (0.2 - torch.tensor(STATISTICS.mean)) / torch.tensor(STATISTICS.std)
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand(1, 3, 32, 32), rtol=1e-5, atol=1e-5)


def test_load_takes_the_folder(mae, folder: Path, tmp_path: Path):
    loaded = emae.load(folder)
    assert same_bits(loaded, mae) and not loaded.training
    assert load_statistics(folder) == STATISTICS and load_config(folder) == mae.config
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    encoder = emae.load(tmp_path / "encoder")
    assert not isinstance(encoder, MaskedAutoencoder)
    assert torch.equal(encoder.blocks[1].attn.qkv.bias, mae.backbone.blocks[1].attn.qkv.bias)
    assert load_statistics(tmp_path / "encoder") == ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_what_transformers_cannot_hold(model):
    with pytest.raises(ValueError, match="32x48: transformers' ViTMAE takes square images only"):
        emae.to_hf(model)
    with pytest.raises(ValueError, match="an encoder alone"):
        emae.to_hf(emae.adapt_encoder(model))
    with torch.device("meta"):
        crossed = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=1, decoder="cross")
    with pytest.raises(ValueError, match="decoder=cross: transformers' ViTMAEForPreTraining has MAE's decoder, self"):
        emae.to_hf(crossed)


@pytest.mark.parametrize(
    "setting",
    [dict(hidden_act="relu"), dict(qkv_bias=False), dict(intermediate_size=100), dict(layer_norm_eps=1e-3)],
)
def test_what_this_software_cannot_hold(setting: dict, tmp_path: Path):
    sizes = {"image_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ViTMAEConfig(**{**sizes, "intermediate_size": 256, "decoder_num_hidden_layers": 1, **setting})
    with pytest.raises(ValueError, match=next(iter(setting))):
        emae.from_hf(ViTMAEForPreTraining(config))


def test_folders_of_something_else(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(name: str, change) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        change(copy)
        return copy

    def edit(**changes):
        def change(copy: Path):
            file = copy / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        return change

    with pytest.raises(ValueError, match="model_type 'clip'; only vit_mae, beit, swin, vit and dinov2"):
        emae.load(broken("clip", edit(model_type="clip")))
    with pytest.raises(ValueError, match="transformers can't load it"):
        emae.load(broken("wide", edit(hidden_size=96)))
    with pytest.raises(ValueError, match="another architecture, without vit.layers.2"):
        emae.load(broken("deep", edit(num_hidden_layers=3)))
    with pytest.raises(ValueError, match="another architecture, with vit.layers.1"):
        emae.load(broken("shallow", edit(num_hidden_layers=1)))
    with pytest.raises(ValueError, match="transformers can't load it"):
        emae.load(broken("cut", lambda copy: (copy / "model.safetensors").write_bytes(b"once upon a time")))
    pickled = broken("pickled", lambda copy: (copy / "model.safetensors").rename(copy / "pytorch_model.bin"))
    with pytest.raises(ValueError, match="transformers can't load it"):
        emae.load(pickled)
    greyish = broken("grey", lambda copy: (copy / "preprocessor_config.json").write_text('{"image_mean": [0.5]}'))
    with pytest.raises(ValueError, match="3 numbers each"):
        load_statistics(greyish)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'efficient-mae\[hub\]'"):
        emae.load(folder)
