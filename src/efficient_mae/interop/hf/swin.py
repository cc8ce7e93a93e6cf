"""transformers' SwinForMaskedImageModeling, which is SimMIM's, both ways."""

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from efficient_mae.errors import InputError
from efficient_mae.interop.hf import parts
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

if TYPE_CHECKING:
    from transformers import SwinForMaskedImageModeling


def to_hf(model: SimMIM) -> "SwinForMaskedImageModeling":
    """transformers' SwinForMaskedImageModeling with the model's weights: the same loss for the same mask.

    Raises:
        InputError: another encoder than a Swin, images that aren't square, windows larger than a stage's grid, or no
            transformers installed.
    """
    transformers, config = parts.transformers_library(), model.config
    if config.family != "swin":
        raise InputError(f"a SimMIM with a {config.family} encoder, and transformers' is with a Swin alone")
    side = parts.common_side(config.img_size, "Swin")
    depths, heads = cast(tuple[int, ...], config.depth), cast(tuple[int, ...], config.num_heads)
    window = cast(int, config.window_size)
    _check_windows(window, config.grid_size[0], len(depths))
    hf = transformers.SwinForMaskedImageModeling(
        transformers.SwinConfig(
            image_size=side,
            patch_size=config.patch_size,
            num_channels=config.in_chans,
            embed_dim=config.embed_dim,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=0.0,
            layer_norm_eps=cast(nn.LayerNorm, model.backbone.norm).eps,
            encoder_stride=model.backbone.strides[-1],
        )
    )
    return parts.give_weights(model, hf, _names(depths))


def from_hf(hf: "SwinForMaskedImageModeling") -> SimMIM:
    """The model with the weights of transformers' SimMIM.

    Mask ratio and units, of which transformers knows nothing, are the published 0.6, and the pixels that a place of
    the encoder's features stands for, 32 with four stages.

    Raises:
        InputError: an architecture that differs from SimMIM's in more than its sizes; the setting is named.
    """
    config = _our_config(hf.config)
    return parts.take_weights(SimMIM(config), hf, _names(cast(tuple[int, ...], config.depth)))


def _our_config(theirs: Any) -> SimMIMConfig:
    side, patch_size = parts.square_side(theirs, "image_size"), parts.square_side(theirs, "patch_size")
    stride = patch_size * 2 ** (len(theirs.depths) - 1)
    needed = {
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_absolute_embeddings": False,
        "encoder_stride": stride,
    }
    parts.check_settings(theirs, needed, "Swin", "SimMIM")
    _check_windows(theirs.window_size, side // patch_size, len(theirs.depths))
    return SimMIMConfig(
        family="swin",
        img_size=(side, side),
        patch_size=patch_size,
        in_chans=theirs.num_channels,
        embed_dim=theirs.embed_dim,
        depth=tuple(theirs.depths),
        num_heads=tuple(theirs.num_heads),
        window_size=theirs.window_size,
        mlp_ratio=float(theirs.mlp_ratio),
        mask_unit=stride,
    )


def _check_windows(window_size: int, side: int, stages: int) -> None:
    """Refuse windows larger than a stage's grid, which transformers' Swin cannot run with."""
    if window_size > (last := side // 2 ** (stages - 1)):
        raise InputError(
            f"window_size={window_size}: transformers' Swin cannot run with windows larger than the {last} x {last} "
            "places of the last stage; timm's does"
        )


def _names(depths: tuple[int, ...]) -> parts.Names:
    """Of every tensor."""
    yield "mask_token", ["swin.embeddings.mask_token"]
    modules = {
        "patch_embed.proj": ["swin.embeddings.patch_embeddings.projection"],
        "patch_embed.norm": ["swin.embeddings.norm"],
        "norm": ["swin.layernorm"],
        "decoder.0": ["decoder.0"],
    }
    for stage, depth in enumerate(depths):
        theirs = f"swin.encoder.layers.{stage}"
        if stage + 1 < len(depths):  # they merge patches at a stage's end, timm at the next one's beginning
            ours = f"layers.{stage + 1}.downsample"
            modules[f"{ours}.norm"] = [f"{theirs}.downsample.norm"]
            yield f"{ours}.reduction.weight", [f"{theirs}.downsample.reduction.weight"]
        for n in range(depth):
            block, layer = f"layers.{stage}.blocks.{n}", f"{theirs}.blocks.{n}"
            table = "relative_position_bias_table"
            yield f"{block}.attn.{table}", [f"{layer}.attention.relative_position_bias.{table}"]
            modules |= parts.block_modules(block, layer)
    yield from parts.parameter_names(modules)
