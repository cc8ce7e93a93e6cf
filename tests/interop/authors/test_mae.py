"""Files in the layout of the original MAE release: names and shapes written out here, values random."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.interop import ImageStatistics, load_config, load_statistics
from efficient_mae.methods.mae import MaskedAutoencoder


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.norm1.weight": (width,), f"{name}.norm1.bias": (width,),
        f"{name}.attn.qkv.weight": (3 * width, width), f"{name}.attn.qkv.bias": (3 * width,),
        f"{name}.attn.proj.weight": (width, width), f"{name}.attn.proj.bias": (width,),
        f"{name}.norm2.weight": (width,), f"{name}.norm2.bias": (width,),
        f"{name}.mlp.fc1.weight": (4 * width, width), f"{name}.mlp.fc1.bias": (4 * width,),
        f"{name}.mlp.fc2.weight": (width, 4 * width), f"{name}.mlp.fc2.bias": (width,),
    }  # fmt: skip


def encoder_weights(width: int = 192, depth: int = 2, patch: int = 8, patches: int = 16) -> dict[str, torch.Tensor]:
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for n in range(depth):
        shapes |= block(f"blocks.{n}", width)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def full_weights(patch: int = 8, patches: int = 16, depth: int = 2) -> dict[str, torch.Tensor]:
    shapes = {
        "mask_token": (1, 1, 512), "decoder_pos_embed": (1, patches + 1, 512),
        "decoder_embed.weight": (512, 192), "decoder_embed.bias": (512,),
        "decoder_norm.weight": (512,), "decoder_norm.bias": (512,),
        "decoder_pred.weight": (patch**2 * 3, 512), "decoder_pred.bias": (patch**2 * 3,),
    }  # fmt: skip
    for n in range(depth):
        shapes |= block(f"decoder_blocks.{n}", 512)
    generator = torch.Generator().manual_seed(1)
    decoder = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return encoder_weights(patch=patch, patches=patches) | decoder


def save(file: Path, content) -> Path:
    torch.save(content, file)
    return file


def test_a_pretraining_file(tmp_path: Path):
    weights = full_weights()
    file = save(tmp_path / "mae_pretrain_vit_tiny_full.pth", {"model": weights})
    model = emae.from_mae_checkpoint(file)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    config = model.config
    assert (config.img_size, config.patch_size, config.depth, config.num_heads) == ((32, 32), 8, 2, 3)
    assert (config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads) == (512, 2, 16)
    assert (config.gamma, config.beta, config.mask_ratio, config.norm_pix_loss) == (0, None, 0.75, True)
    assert load_config(file) == config and not emae.load(file).training
    assert load_statistics(file) == ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    # transformers computes the same loss from the same weights.
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = emae.to_hf(model).eval()(images, noise=torch.rand(2, 16))
        out = model.eval()(images, expected.mask.bool().view(2, 4, 4))
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=0)


def test_a_visualize_file_predicts_pixels(tmp_path: Path):
    file = save(tmp_path / "mae_visualize_vit_tiny.pth", {"model": full_weights()})
    assert not emae.from_mae_checkpoint(file).config.norm_pix_loss


def test_a_training_checkpoint_with_its_arguments(tmp_path: Path):
    content = {
        "model": full_weights(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 7,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(mask_ratio=0.9, norm_pix_loss=False, model="mae_vit_tiny_patch8", data_path="/d"),
    }
    config = emae.from_mae_checkpoint(save(tmp_path / "checkpoint-7.pth", content)).config
    assert (config.mask_ratio, config.norm_pix_loss) == (0.9, False)


@pytest.mark.parametrize("tuned", [False, True])
def test_files_of_the_encoder_alone(tmp_path: Path, tuned: bool):
    weights = encoder_weights()
    content = dict(weights)
    if tuned:  # fine-tuned: the norm is behind the pooling, and there is a head
        content |= {"fc_norm.weight": content.pop("norm.weight"), "fc_norm.bias": content.pop("norm.bias")}
        content |= {"head.weight": torch.ones(1000, 192), "head.bias": torch.ones(1000)}
    file = save(tmp_path / "mae_pretrain_vit_tiny.pth", {"model": content})
    encoder = emae.load(file)
    assert not isinstance(encoder, MaskedAutoencoder)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="holds an encoder alone"):
        emae.from_mae_checkpoint(file)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_heads_of_the_releases_sizes(tmp_path: Path, width: int, heads: int):
    file = save(tmp_path / "mae.pth", {"model": encoder_weights(width, depth=1, patch=4, patches=4)})
    assert emae.load(file).num_heads == heads


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("write", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(tmp_path: Path, write, suffix: str, capsys: pytest.CaptureFixture[str]):
    trace, file = tmp_path / "trace", tmp_path / f"mae{suffix}"
    write({"model": encoder_weights(), "args": Hostile(trace)}, file)
    for read in (emae.load, emae.from_mae_checkpoint):
        with pytest.raises(ValueError, match="could run code; nothing in it was run|not a (whole )?checkpoint"):
            read(file)
    status = main(["knn", "--weights", str(file)])
    err = capsys.readouterr().err
    assert status == 2 and len(err.splitlines()) == 1 and str(file) in err
    assert not trace.exists()
    torch.load(file, weights_only=False) if write is torch.save else pickle.loads(file.read_bytes())
    assert trace.exists(), "the trap doesn't work"


def test_files_of_something_else(tmp_path: Path):
    def refused(content, what: str):
        file = tmp_path / "file.pth"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ValueError, match=what):
            emae.load(file)

    whole = save(tmp_path / "whole.pth", {"model": encoder_weights()}).read_bytes()
    refused(b"", "not a whole checkpoint")
    refused(b"once upon a time", "not a (whole )?checkpoint")
    refused(whole[: len(whole) // 2], "not a (whole )?checkpoint")
    refused(torch.ones(3), "holds a Tensor")
    refused({"epoch": 3}, "holds no state dict")
    refused({"conv1.weight": torch.ones(64, 3, 7, 7)}, "patch_embed.proj.weight")
    refused({"model": {"patch_embed.proj.weight": torch.ones(3)}}, "another architecture")
    refused(encoder_weights(width=200), "an encoder 200 wide; its heads are known for 192, 384, 768")
    refused(encoder_weights(patches=14), "square patches on a square grid")
    weights = encoder_weights()
    refused(
        {name: value for name, value in weights.items() if name != "blocks.1.mlp.fc2.bias"}, "without blocks.1.mlp"
    )
    refused({name: value for name, value in weights.items() if not name.startswith("blocks.0.")}, "'blocks'")
    refused(weights | {"blocks.0.attn.q_norm.weight": torch.ones(64)}, "with blocks.0.attn.q_norm.weight")
    refused(weights | {"norm.bias": torch.ones(7)}, r"norm.bias is \(7,\) and not \(192,\)")
    refused(full_weights() | {"mask_token": torch.ones(1, 1, 256)}, "a decoder 256 wide")
    with pytest.raises(ValueError, match="no such file"):
        emae.load(tmp_path / "nothing.pth")
