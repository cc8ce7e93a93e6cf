"""`emae info`: what a model is, what it costs, and what it would run on."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from efficient_mae.bench.flops import encoder_gmacs, model_cost
from efficient_mae.command import Result
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.interop import describe_weights
from efficient_mae.interop.foreign_files import first
from efficient_mae.methods import MethodConfig
from efficient_mae.ranges import Location
from efficient_mae.tasks.pretrain_config import ModelChoice, build_model


@dataclass(frozen=True, kw_only=True)
class InfoConfig(ModelChoice):
    """Settings of `emae info`."""

    weights: Location | None = None
    """run directory, checkpoint, export, timm:NAME, a folder of timm's or transformers', .safetensors or .pth; null:
    the model that the other flags describe"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True)
class WeightsRecord:
    """What weights are.

    Attributes:
        path: where they lie.
        kind: who described them, in words.
        taken: number of parameters that any command reads of them.
        left_out: what lies beside them and isn't read: number of parameters by name.
        mean, std: of each channel, by which images are normalised.
    """

    path: str
    kind: str
    taken: int
    left_out: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class InfoResult(Result):
    """What a model is; its method says of what, so by name.

    Attributes:
        model: its configuration; of an encoder alone its family, and what it is built by.
        cost: as :class:`efficient_mae.bench.flops.Cost`, with the tokens by their names, and `ratio`; of an encoder
            alone its parameters, and the multiply-accumulates over a whole image.
        environment: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it, and `precision`.
        weights: where they are given, what they are.
    """

    model: dict[str, Any]
    cost: dict[str, float]
    environment: dict[str, Any]
    weights: WeightsRecord | None = None


def info(config: InfoConfig) -> InfoResult:
    """Parameters, tokens and GMACs of a model, and the environment.

    Raises:
        InputError: no such weights, model or device.
    """
    device = find_device(config.device)
    weights = None
    if config.weights is not None:
        found = describe_weights(config.weights)
        statistics, described = found.statistics, found.model
        weights = WeightsRecord(
            config.weights, found.kind, found.taken, dict(found.left_out), statistics.mean, statistics.std
        )
    else:
        with torch.device("meta"):
            described = build_model(config).config
    environment = describe_machine(device) | {"precision": resolve_precision("auto", device)}
    if not isinstance(described, MethodConfig):
        parameters = sum(one.numel() for one in described.parameters())
        counted: dict[str, float] = {"encoder_parameters": parameters, "gmacs": encoder_gmacs(described)}
        model = {"backbone": described.family, **described.arguments}
        return InfoResult(model=model, cost=counted, environment=environment, weights=weights)
    cost = dataclasses.asdict(model_cost(described))
    cost = cost.pop("tokens") | cost | {"ratio": cost["gmacs"] / cost["mae_gmacs"]}
    return InfoResult(model=described.to_dict(), cost=cost, environment=environment, weights=weights)


def show_info(result: InfoResult, console: Console) -> None:
    """Print what :func:`info` found."""
    model, cost = result.model, result.cost
    table = Table(show_header=False, box=None)
    height, width = model["img_size"]
    patches = (height // model["patch_size"]) * (width // model["patch_size"])
    objective = {name: model[name] for name in ("mask_ratio", "beta", "gamma") if name in model}
    for name, usual in (("targets", "p2dist"), ("prediction_ratio", None), ("shuffle", None), ("decoder", "self")):
        objective |= {name: model[name]} if model.get(name, usual) != usual else {}
    rows = {} if result.weights is None else _rows_of(result.weights)
    rows |= {
        "image": f"{height} x {width}, {model['in_chans']} channels, {patches} patches of {model['patch_size']} px",
        "encoder": f"{model['depth']} blocks, {model['embed_dim']} wide, {model['num_heads']} heads, "
        f"{cost['encoder_parameters'] / 1e6:.1f} M parameters",
    }
    if "decoder_parameters" in cost:
        decoder = f"{cost['decoder_parameters'] / 1e6:.1f} M parameters"
        if "decoder_embed_dim" in model:
            decoder = (
                f"{model['decoder_depth']} blocks, {model['decoder_embed_dim']} wide, "
                f"{model['decoder_num_heads']} heads, {decoder}"
            )
        rows |= {
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
    beside = f", {cost['ratio']:.2f} of MAE 0.75's {cost['mae_gmacs']:.2f}" if cost.get("ratio", 1) != 1 else ""
    whole = "" if "masked_patches" in cost else ", of which nothing is hidden"
    rows["forward pass"] = f"{cost['gmacs']:.2f} GMACs an image{beside}{whole}"
    for name, value in (*rows.items(), *result.environment.items()):
        table.add_row(name, str(value))
    if result.weights is not None:  # a path that is longer than the table is wide would squeeze its other column
        console.print(f"{result.weights.path}: {result.weights.kind}", markup=False)
    console.print(table)


def _rows_of(weights: WeightsRecord) -> dict[str, str]:
    left_out = (
        f", {sum(weights.left_out.values()):,} left out ({first(weights.left_out)})" if weights.left_out else ""
    )
    mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (weights.mean, weights.std))
    return {
        "read of them": f"{weights.taken:,} parameters{left_out}",
        "images": f"normalised by mean {mean} and standard deviation {std}",
    }
