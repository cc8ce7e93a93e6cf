"""`emae info`: what a model is, what it costs, and what it would run on."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from efficient_mae.bench.flops import model_cost
from efficient_mae.command import Result
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.interop import load_config
from efficient_mae.ranges import Location
from efficient_mae.tasks.pretrain_config import ModelChoice, build_model


@dataclass(frozen=True, kw_only=True)
class InfoConfig(ModelChoice):
    """Settings of `emae info`."""

    weights: Location | None = None
    """run directory, checkpoint or exported weights; null: the model that the other flags describe"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class InfoResult(Result):
    """What a model is; its method says of what, so by name.

    Attributes:
        model: its configuration.
        cost: as :class:`efficient_mae.bench.flops.Cost`, with the tokens by their names, and `ratio`.
        environment: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it, and `precision`.
    """

    model: dict[str, Any]
    cost: dict[str, float]
    environment: dict[str, Any]


def info(config: InfoConfig) -> InfoResult:
    """Parameters, tokens and GMACs of a model, and the environment.

    Raises:
        InputError: no such weights, model or device.
    """
    device = find_device(config.device)
    if config.weights is not None:
        described = load_config(config.weights)
    else:
        with torch.device("meta"):
            described = build_model(config).config
    cost = dataclasses.asdict(model_cost(described))
    return InfoResult(
        model=described.to_dict(),
        cost=cost.pop("tokens") | cost | {"ratio": cost["gmacs"] / cost["mae_gmacs"]},
        environment=describe_machine(device) | {"precision": resolve_precision("auto", device)},
    )


def show_info(result: InfoResult, console: Console) -> None:
    """Print what :func:`info` found."""
    model, cost = result.model, result.cost
    table = Table(show_header=False, box=None)
    height, width = model["img_size"]
    patches = (height // model["patch_size"]) * (width // model["patch_size"])
    objective = {name: model[name] for name in ("mask_ratio", "beta", "gamma") if name in model}
    for name, usual in (("targets", "p2dist"), ("prediction_ratio", None), ("decoder", "self")):
        objective |= {name: model[name]} if model.get(name, usual) != usual else {}
    decoder = f"{cost['decoder_parameters'] / 1e6:.1f} M parameters"
    if "decoder_depth" in model:
        decoder = (
            f"{model['decoder_depth']} blocks, {model['decoder_embed_dim']} wide, "
            f"{model['decoder_num_heads']} heads, {decoder}"
        )
    rows = {
        "image": f"{height} x {width}, {model['in_chans']} channels, {patches} patches of {model['patch_size']} px",
        "encoder": f"{model['depth']} blocks, {model['embed_dim']} wide, {model['num_heads']} heads, "
        f"{cost['encoder_parameters'] / 1e6:.1f} M parameters",
        "decoder": decoder,
        "objective": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in objective.items()),
        "masked patches": f"{cost['masked_patches']} an image",
    }
    if "decoder_tokens" in cost:
        rows |= {
            "encoder tokens": f"{cost['encoder_tokens']} an image",
            "decoder tokens": f"{cost['decoder_tokens']:.1f} an image, for {cost['predicted_patches']:.1f} "
            f"predicted of {cost['masked_patches']} masked patches",
        }
    beside = f", {cost['ratio']:.2f} of MAE 0.75's {cost['mae_gmacs']:.2f}" if cost["ratio"] != 1 else ""
    rows["forward pass"] = f"{cost['gmacs']:.2f} GMACs an image{beside}"
    for name, value in (*rows.items(), *result.environment.items()):
        table.add_row(name, str(value))
    console.print(table)
