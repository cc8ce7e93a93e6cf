"""Files in the layout of the published BEiT: names and shapes written out here, values random."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import efficient_mae as emae
from efficient_mae.backbones import Beit
from efficient_mae.interop import ImageStatistics, load_config, load_statistics
from efficient_mae.methods.beit import BEiT


def encoder_weights(
    width: int = 48, heads: int = 3, depth: int = 2, patch: int = 8, side: int = 4
) -> dict[str, Tensor]:
    shapes = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "rel_pos_bias.relative_position_bias_table": ((2 * side - 1) ** 2 + 3, heads),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for n in range(depth):
        block = f"blocks.{n}"
        shapes |= {
            f"{block}.gamma_1": (width,), f"{block}.gamma_2": (width,),
            f"{block}.norm1.weight": (width,), f"{block}.norm1.bias": (width,),
            f"{block}.attn.q_bias": (width,), f"{block}.attn.v_bias": (width,),
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.proj.weight": (width, width), f"{block}.attn.proj.bias": (width,),
            f"{block}.norm2.weight": (width,), f"{block}.norm2.bias": (width,),
            f"{block}.mlp.fc1.weight": (4 * width, width), f"{block}.mlp.fc1.bias": (4 * width,),
            f"{block}.mlp.fc2.weight": (width, 4 * width), f"{block}.mlp.fc2.bias": (width,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def whole_weights(vocabulary: int = 64) -> dict[str, Tensor]:
    head = {"mask_token": (1, 1, 48), "lm_head.weight": (vocabulary, 48), "lm_head.bias": (vocabulary,)}
    return encoder_weights() | {name: torch.randn(shape) * 0.1 for name, shape in head.items()}


# What the published files hold beside the weights.
INDEX = {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}


def save(file: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model": weights}, file)
    return file


def test_a_pretraining_file(tmp_path: Path):
    weights = whole_weights()
    file = save(tmp_path / "beit_tiny.pth", weights | INDEX)
    model = emae.load(file)
    assert type(model) is BEiT and not model.training
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    config = load_config(file)
    assert (config.img_size, config.patch_size, config.depth, config.num_heads) == ((32, 32), 8, 2, 3)
    assert config.vocab_size == 64 and config.tokenizer is None
    assert load_statistics(file) == ImageStatistics((0.5,) * 3, (0.5,) * 3)
    # transformers computes the same logits from the same weights.
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.4
    with torch.no_grad():
        expected = emae.to_hf(model).eval()(images, bool_masked_pos=mask).logits
        latent = model.backbone.forward_masked(images, mask.view(2, 4, 4), model.mask_token)
        torch.testing.assert_close(model.lm_head(latent).flatten(1, 2), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="holds a model of beit; efficient_mae.load takes it"):
        emae.from_mae_checkpoint(file)


def test_the_encoder_alone(tmp_path: Path):
    weights = encoder_weights()
    encoder = emae.load(save(tmp_path / "beit.pth", weights))
    assert type(encoder) is Beit
    assert load_statistics(tmp_path / "beit.pth") == ImageStatistics((0.5,) * 3, (0.5,) * 3)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


def test_files_of_something_else(tmp_path: Path):
    def refused(weights: dict[str, Tensor], what: str):
        with pytest.raises(ValueError, match=what):
            emae.load(save(tmp_path / "file.pth", weights))

    weights = encoder_weights()
    table = "rel_pos_bias.relative_position_bias_table"
    tuned = {name: value for name, value in weights.items() if name != table}
    refused(tuned | {"blocks.0.attn.relative_position_bias_table": weights[table]}, "a fine-tuned Beit")
    refused(weights | {table: torch.ones(50, 3)}, "square patches on a square grid")
    refused(
        weights | {"blocks.7.gamma_1": torch.ones(48)}, "another architecture, with blocks.7.gamma_1|without blocks"
    )
    refused(
        {name: value for name, value in weights.items() if name != "blocks.1.mlp.fc2.bias"}, "without blocks.1.mlp"
    )
    refused({name: value for name, value in weights.items() if name != "patch_embed.proj.weight"}, "patch_embed.proj")
    refused(whole_weights() | {"norm.bias": torch.ones(7)}, r"norm.bias is \(7,\) and not \(48,\)")
