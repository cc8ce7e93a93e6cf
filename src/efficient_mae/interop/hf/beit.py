"""transformers' BeitForMaskedImageModeling, both ways."""

from typing import TYPE_CHECKING, Any

from efficient_mae.backbones.patches import grid_size
from efficient_mae.backbones.vit import LAYER_NORM_EPS
from efficient_mae.interop.hf import parts
from efficient_mae.methods.beit import BEiT, BEiTConfig

if TYPE_CHECKING:
    from transformers import BeitForMaskedImageModeling


def to_hf(model: BEiT) -> "BeitForMaskedImageModeling":
    """transformers' BeitForMaskedImageModeling with the model's weights: the same logits and loss for the same mask.

    Raises:
        InputError: images that aren't square, or no transformers installed.
    """
    transformers, config = parts.transformers_library(), model.config
    hf = transformers.BeitForMaskedImageModeling(
        transformers.BeitConfig(
            image_size=parts.common_side(config.img_size, "Beit"),
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
    )
    return parts.give_weights(model, hf, _names(config.depth))


def from_hf(hf: "BeitForMaskedImageModeling") -> BEiT:
    """The model with the weights of transformers' BEiT; the tokenizer that it learnt from is not known to it.

    Raises:
        InputError: an architecture that differs from BEiT's in more than its sizes; the setting is named.
    """
    config = _our_config(hf.config)
    return parts.take_weights(BEiT(config), hf, _names(config.depth))


def _our_config(theirs: Any) -> BEiTConfig:
    needed = {
        "hidden_act": "gelu",
        "intermediate_size": 4 * theirs.hidden_size,
        "use_mask_token": True,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": True,
    }
    parts.check_settings(theirs, needed, "Beit", "BEiT")
    side, patch_size = parts.square_side(theirs, "image_size"), parts.square_side(theirs, "patch_size")
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


def _names(depth: int) -> parts.Names:
    """Of every tensor."""
    yield "cls_token", ["beit.embeddings.cls_token"]
    yield "mask_token", ["beit.embeddings.mask_token"]
    table = "relative_position_bias_table"
    yield f"rel_pos_bias.{table}", [f"beit.shared_position_bias.{table}"]
    modules = {
        "patch_embed.proj": ["beit.embeddings.patch_embeddings.projection"],
        "norm": ["layernorm"],
        "lm_head": ["lm_head"],
    }
    for n in range(depth):
        block, layer = f"blocks.{n}", f"beit.layers.{n}"
        yield f"{block}.gamma_1", [f"{layer}.lambda_1"]
        yield f"{block}.gamma_2", [f"{layer}.lambda_2"]
        yield f"{block}.attn.q_bias", [f"{layer}.attention.q_proj.bias"]
        yield f"{block}.attn.v_bias", [f"{layer}.attention.v_proj.bias"]
        modules |= parts.block_modules(block, layer)
    yield from (pair for pair in parts.parameter_names(modules) if not pair[0].endswith(".attn.qkv.bias"))
