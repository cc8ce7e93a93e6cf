"""`emae export`: a trained model in the form that another library loads, checked by loading it with that library."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from efficient_mae.command import Result
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, adapt_encoder, adapt_statistics, load, load_statistics
from efficient_mae.interop.classifiers import Classifier, adapt_classifier, find_head, load_classifier
from efficient_mae.interop.graphs import require_onnx
from efficient_mae.methods import Method, backbone_of
from efficient_mae.ranges import Location, Pixels, PositiveInt, Settings
from efficient_mae.tasks.export.formats import CLASSIFIER_FORMATS, FORMATS, Format, Model
from efficient_mae.tasks.export.images import TransformCheck, check_transform

# Largest difference that passes, relative to the largest output where that is beyond 1. Kernels sum in other orders.
TOLERANCE = 1e-4

# Random images that outputs are compared on; not the two that graphs are traced with.
_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Settings of `emae export`."""

    weights: Location
    """run directory (of fine-tuning or probing: the classifier), checkpoint, export, timm:NAME, folder of timm's or
    transformers', .safetensors or .pth"""
    out: Location
    """folder to write; must not exist, or be empty"""
    format: str = "timm"
    """timm, transformers (all of it, of MAE, BEiT and SimMIM), safetensors (an encoder's), onnx or torch-export"""
    img_size: Pixels | None = None
    """pixels, one number or [height, width] (null: as trained)"""
    patch_size: PositiveInt | None = None
    """pixels of a patch's side (null: as trained)"""
    in_chans: PositiveInt | None = None
    """channels (null: as trained)"""
    channels: str | None = None
    """what becomes of the weights if in_chans changes: mean, repeat or first (then zeros)"""


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """What was written, and how it compares.

    Attributes:
        format: that it is in.
        folder: that it is in.
        files: names in it.
        largest_difference: of the outputs.
        snippet: Python that loads it.
        transform: of images; None where the format has none.
    """

    format: str
    folder: str
    files: list[str]
    largest_difference: float
    snippet: str
    transform: TransformCheck | None


@torch_seeded(0)
def export(config: ExportConfig) -> ExportResult:
    """Write a trained model for another library, load it with that library, and compare outputs on random images: the
    logits of a classifier, with its classes' names; else the encoder's tokens.

    Where the library transforms images too, what it makes of them is compared with what evaluation here does.

    Raises:
        InputError: no such weights or format, a folder that holds something, a change of the image or of the
            channels that cannot be, no decoder where one is needed, or a library that isn't installed.
        RuntimeError: what was written gives other outputs; nothing is left of it.
    """
    if config.format not in FORMATS:
        raise InputError(f"format={config.format!r}: must be one of {', '.join(FORMATS)}")
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out}: exists and isn't an empty folder; give another")
    if config.format == "onnx":
        require_onnx()
    model, statistics, form = _classifier(config) if find_head(config.weights) else _model(config)
    sized = model if isinstance(model, Classifier) else backbone_of(model)
    # Written and checked under another name, so that a folder of this name is a whole export.
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        form.write(partial, model, statistics)
        difference = _check(form, partial, model)
        check = form.transform and check_transform(
            form.transform(partial), sized.img_size, sized.in_chans, statistics
        )
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportResult(
        format=config.format,
        folder=str(out),
        files=sorted(path.name for path in out.iterdir()),
        largest_difference=difference,
        snippet=form.snippet(out, model),
        transform=check,
    )


def show_export(result: ExportResult, console: Console) -> None:
    """Print what :func:`export` did."""
    lines = [f"{result.folder}: {', '.join(result.files)}"]
    if check := result.transform:
        if (levels := check.largest_difference) is not None:
            lines.append(f"its transform gives the pixels that are evaluated here, to {levels:.1f} of 255 levels")
        lines += check.remarks
    lines.append(f"loaded back, its outputs differ by {result.largest_difference:.1e} at most. To load it:")
    console.print(
        "\n".join(lines) + f"\n\n{result.snippet}",
        markup=False,
        highlight=False,
    )


def _changes(config: ExportConfig) -> dict[str, Any]:
    changes = {"img_size": config.img_size, "patch_size": config.patch_size, "in_chans": config.in_chans}
    return {name: value for name, value in changes.items() if value is not None}


def _classifier(config: ExportConfig) -> tuple[Model, ImageStatistics, Format]:
    """The classifier to write, the statistics of its images, and how it is written."""
    if config.format not in CLASSIFIER_FORMATS:
        raise InputError(
            f"format={config.format} writes encoders, and {config.weights} holds a classifier: take one of "
            f"{', '.join(CLASSIFIER_FORMATS)}; timm's create_model(..., num_classes=0) leaves its encoder"
        )
    classifier = load_classifier(config.weights)
    if changed := _changes(config):
        classifier = adapt_classifier(classifier, **changed, channels=config.channels)
    return classifier, classifier.statistics, CLASSIFIER_FORMATS[config.format]


def _model(config: ExportConfig) -> tuple[Model, ImageStatistics, Format]:
    """The model to write, the statistics of its images, and how it is written."""
    model, statistics = load(config.weights).float(), load_statistics(config.weights)
    changed, form = _changes(config), FORMATS[config.format]
    if config.format == "transformers":
        if changed:
            raise InputError(
                f"{next(iter(changed))}: a decoder can't be adapted, and format=transformers has one; leave it out"
            )
        if not isinstance(model, Method):
            raise InputError(
                f"{config.weights}: holds an encoder alone, and format=transformers needs the decoder; "
                "give the run directory, or --format timm"
            )
        return model, statistics, form
    if not changed:
        return model, statistics, form
    adapted = adapt_encoder(model, **changed, channels=config.channels)
    return adapted, adapt_statistics(statistics, adapted.in_chans, config.channels), form


@torch.no_grad()
def _check(form: Format, folder: Path, model: Model) -> float:
    """The largest difference between what was written and the model."""
    generator = torch.Generator().manual_seed(0)
    sized = model if isinstance(model, Classifier) else backbone_of(model)
    images = torch.randn(_IMAGES, sized.in_chans, *sized.img_size, generator=generator)
    largest = 0.0
    for theirs, ours in form.differences(folder, model, images):
        difference = (theirs - ours).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
            raise RuntimeError(
                f"what was written gives other outputs than the model: they differ by {difference:.1e}"
            )
        largest = max(largest, difference)
    return largest
