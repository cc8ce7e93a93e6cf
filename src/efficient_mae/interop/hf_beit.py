"""transformers' BeitForMaskedImageModeling, both ways."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from efficient_mae.backbones.patches import grid_size
from efficient_mae.backbones.vit import LAYER_NORM_EPS
from efficient_mae.errors import InputError
from efficient_mae.interop.hf_parts import LARGEST_EPS, square_side, transformers_library
from efficient_mae.methods.beit import BEiT, BEiTConfig

if TYPE_CHECKING:
    from transformers import BeitForMaskedImageModeling


def to_hf(model: BEiT) -> "BeitForMaskedImageModeling":
    """transformers' BeitForMaskedImageModeling with the model's weights: the same logits and loss for the same mask.

    Raises:
        InputError: images that aren't square, or no transformers installed.
    """
    transformers = transformers_library()
    config = model.config
    height, width = config.img_size
    if height != width:
        raise InputError(f"img_size={height}x{width}: transformers' Beit takes square images only; timm takes any")
    hf = transformers.BeitForMaskedImageModeling(
        transformers.BeitConfig(
            image_size=height,
            patch_size=config.patch_size,
            num_channels=config.in_chans,
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.embed_dim,
            layer_scale_init_value=config.layer_scale,
            drop_path_rate=config.drop_path,
            layer_norm_eps=LAYER_NORM_EPS,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
        )
    ).to(model.mask_token.dtype)
    weights = model.state_dict()
    hf.load_state_dict(
        {
            theirs: part
            for ours, names in _names(config.depth)
            for theirs, part in zip(names, weights[ours].chunk(len(names)))
        }
    )
    return hf.train(model.training)


def from_hf(hf: "BeitForMaskedImageModeling") -> BEiT:
    """The model with the weights of transformers' BEiT; the tokenizer that it learnt from is not known to it.

    Raises:
        InputError: an architecture that differs from BEiT's in more than its sizes; the setting is named.
    """
    config = _our_config(hf.config)
    weights = hf.state_dict()
    model = BEiT(config).to(hf.dtype)
    model.load_state_dict(
        {ours: torch.cat([weights[name] for name in names]) for ours, names in _names(config.depth)}
    )
    return model.train(hf.training)


def _our_config(theirs: Any) -> BEiTConfig:
    must_be = {
        "hidden_act": ("gelu", theirs.hidden_act),
        "intermediate_size": (4 * theirs.hidden_size, theirs.intermediate_size),
        "use_mask_token": (True, theirs.use_mask_token),
        "use_absolute_position_embeddings": (False, theirs.use_absolute_position_embeddings),
        "use_relative_position_bias": (False, theirs.use_relative_position_bias),
        "use_shared_relative_position_bias": (True, theirs.use_shared_relative_position_bias),
        "use_mean_pooling": (True, theirs.use_mean_pooling),
    }
    for name, (needed, given) in must_be.items():
        if given != needed:
            raise InputError(f"{name}={given}: a Beit of another architecture; BEiT's pre-training has {needed}")
    if theirs.layer_norm_eps > LARGEST_EPS:
        raise InputError(f"layer_norm_eps={theirs.layer_norm_eps}: a Beit of another architecture; BEiT's has 1e-6")
    side, patch_size = square_side(theirs, "image_size"), square_side(theirs, "patch_size")
    usual = BEiTConfig.usual(grid_size((side, side), patch_size), theirs.num_hidden_layers, theirs.num_channels)
    given = {
        "img_size": (side, side),
        "patch_size": patch_size,
        "in_chans": theirs.num_channels,
        "embed_dim": theirs.hidden_size,
        "depth": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "layer_scale": theirs.layer_scale_init_value,
        "drop_path": float(theirs.drop_path_rate),
        "vocab_size": theirs.vocab_size,
    }
    return BEiTConfig(**usual | given)


def _names(depth: int) -> Iterator[tuple[str, list[str]]]:
    """(our name, transformers' names) of every tensor; three of theirs, stacked, are our fused qkv."""
    yield "cls_token", ["beit.embeddings.cls_token"]
    yield "mask_token", ["beit.embeddings.mask_token"]
    table = "relative_position_bias_table"
    yield f"rel_pos_bias.{table}", [f"beit.shared_position_bias.{table}"]
    modules = {
        "patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "lm_head": "lm_head",
    }
    for n in range(depth):
        block, layer = f"blocks.{n}", f"beit.layers.{n}"
        yield f"{block}.gamma_1", [f"{layer}.lambda_1"]
        yield f"{block}.gamma_2", [f"{layer}.lambda_2"]
        yield f"{block}.attn.q_bias", [f"{layer}.attention.q_proj.bias"]
        yield f"{block}.attn.v_bias", [f"{layer}.attention.v_proj.bias"]
        yield f"{block}.attn.qkv.weight", [f"{layer}.attention.{which}_proj.weight" for which in "qkv"]
        modules |= {
            f"{block}.norm1": f"{layer}.layernorm_before",
            f"{block}.attn.proj": f"{layer}.attention.o_proj",
            f"{block}.norm2": f"{layer}.layernorm_after",
            f"{block}.mlp.fc1": f"{layer}.mlp.fc1",
            f"{block}.mlp.fc2": f"{layer}.mlp.fc2",
        }
    for ours, theirs in modules.items():
        for what in ("weight", "bias"):
            yield f"{ours}.{what}", [f"{theirs}.{what}"]
