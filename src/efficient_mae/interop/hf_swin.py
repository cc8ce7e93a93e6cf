"""transformers' SwinForMaskedImageModeling, which is SimMIM's, both ways."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from efficient_mae.errors import InputError
from efficient_mae.interop.hf_parts import LARGEST_EPS, require_transformers, square_side
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

if TYPE_CHECKING:
    from transformers import SwinForMaskedImageModeling


def to_hf(model: SimMIM) -> "SwinForMaskedImageModeling":
    """transformers' SwinForMaskedImageModeling with the model's weights: the same loss for the same mask.

    Raises:
        InputError: another encoder than a Swin, images that aren't square, windows larger than a stage's grid, or no
            transformers installed.
    """
    transformers, config = require_transformers(), model.config
    if config.family != "swin":
        raise InputError(f"a SimMIM with a {config.family} encoder, and transformers' is with a Swin alone")
    height, width = config.img_size
    if height != width:
        raise InputError(f"img_size={height}x{width}: transformers' Swin takes square images only; timm takes any")
    depths, heads = cast(tuple[int, ...], config.depth), cast(tuple[int, ...], config.num_heads)
    window = cast(int, config.window_size)
    _check_windows(window, config.grid_size[0], len(depths))
    hf = transformers.SwinForMaskedImageModeling(
        transformers.SwinConfig(
            image_size=height,
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
    ).to(model.mask_token.dtype)
    weights = model.state_dict()
    hf.load_state_dict(
        {
            theirs: part
            for ours, names in _names(depths)
            for theirs, part in zip(names, weights[ours].chunk(len(names)), strict=True)
        }
    )
    return hf.train(model.training)


def from_hf(hf: "SwinForMaskedImageModeling") -> SimMIM:
    """The model with the weights of transformers' SimMIM.

    Mask ratio and units, of which transformers knows nothing, are the published 0.6, and the pixels that a place of
    the encoder's features stands for, 32 with four stages.

    Raises:
        InputError: an architecture that differs from SimMIM's in more than its sizes; the setting is named.
    """
    config = _our_config(hf.config)
    weights = hf.state_dict()
    model = SimMIM(config).to(hf.dtype)
    names = _names(cast(tuple[int, ...], config.depth))
    model.load_state_dict({ours: torch.cat([weights[name] for name in theirs]) for ours, theirs in names})
    return model.train(hf.training)


def _our_config(theirs: Any) -> SimMIMConfig:
    side, patch_size = square_side(theirs, "image_size"), square_side(theirs, "patch_size")
    stride = patch_size * 2 ** (len(theirs.depths) - 1)
    must_be = {
        "hidden_act": ("gelu", theirs.hidden_act),
        "qkv_bias": (True, theirs.qkv_bias),
        "use_absolute_embeddings": (False, theirs.use_absolute_embeddings),
        "encoder_stride": (stride, theirs.encoder_stride),
    }
    for name, (needed, given) in must_be.items():
        if given != needed:
            raise InputError(f"{name}={given}: a Swin of another architecture; SimMIM's has {needed}")
    if theirs.layer_norm_eps > LARGEST_EPS:
        raise InputError(f"layer_norm_eps={theirs.layer_norm_eps}: a Swin of another architecture; SimMIM's has 1e-5")
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


def _names(depths: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """(our name, transformers' names) of every tensor; three of theirs, stacked, are our fused qkv."""
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
            modules[f"{block}.norm1"] = [f"{layer}.layernorm_before"]
            modules[f"{block}.attn.qkv"] = [f"{layer}.attention.{which}_proj" for which in "qkv"]
            modules[f"{block}.attn.proj"] = [f"{layer}.attention.o_proj"]
            modules[f"{block}.norm2"] = [f"{layer}.layernorm_after"]
            modules[f"{block}.mlp.fc1"] = [f"{layer}.mlp.fc1"]
            modules[f"{block}.mlp.fc2"] = [f"{layer}.mlp.fc2"]
    for ours, theirs in modules.items():
        for what in ("weight", "bias"):
            yield f"{ours}.{what}", [f"{name}.{what}" for name in theirs]
