"""`emae export`: a trained model in the form that another library loads, checked by loading it with that library.

B images, C channels, h x w pixels, D width.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from efficient_mae.backbones import VisionTransformer
from efficient_mae.command import Result
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.errors import InputError
from efficient_mae.interop import (
    ImageStatistics,
    adapt_encoder,
    adapt_statistics,
    encoder_of,
    load,
    load_snippet,
    load_statistics,
    save_encoder,
    to_timm,
)
from efficient_mae.interop.graphs import require_onnx, run_onnx, save_onnx, save_torch_export
from efficient_mae.interop.timm_models import save_timm
from efficient_mae.interop.vit_mae import quiet, save_hf
from efficient_mae.methods import Method, backbone_of
from efficient_mae.methods.mae import MaskedAutoencoder
from efficient_mae.ranges import Pixels, PositiveInt, Settings
from efficient_mae.tasks.export_images import (
    Transform,
    TransformCheck,
    check_transform,
    timm_transform,
    transformers_transform,
)

# Largest difference that passes, relative to the largest output where that is beyond 1. Kernels sum in other orders.
TOLERANCE = 1e-4

# Random images that outputs are compared on; not the two that graphs are traced with.
_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Settings of `emae export`."""

    weights: str
    """run directory, checkpoint, exported weights, transformers folder or original MAE .pth"""
    out: str
    """folder to write; must not exist, or be empty"""
    format: str = "timm"
    """timm, transformers (with the decoder), safetensors, onnx or torch-export"""
    img_size: Pixels | None = None
    """pixels, one number or [height, width] (null: as trained)"""
    patch_size: PositiveInt | None = None
    """pixels of a patch's side (null: as trained)"""
    in_chans: PositiveInt | None = None
    """channels (null: as trained)"""
    channels: str | None = None
    """what becomes of the weights if in_chans changes: mean, repeat or first (then zeros)"""


# (another library's output, ours).
Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Format:
    """A form to write.

    Attributes:
        write: writes a model into a folder.
        differences: loads what was written with the other library's own call; (its output, ours) on given images.
        snippet: Python that loads it from a folder.
        transform: loads what the other library makes of images, from a folder; None where it holds no such thing.
    """

    write: Callable[[Path, Any, ImageStatistics], None]
    differences: Callable[[Path, Any, Tensor], Pairs]
    snippet: Callable[[Path, Any], str]
    transform: Callable[[Path], Transform] | None = None


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
    """Write a trained model for another library, load it with that library, and compare outputs on random images.

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
    model, statistics = _model(config)
    form, encoder = FORMATS[config.format], backbone_of(model)
    # Written and checked under another name, so that a folder of this name is a whole export.
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        form.write(partial, model, statistics)
        difference = _check(form, partial, model)
        check = form.transform and check_transform(
            form.transform(partial), encoder.img_size, encoder.in_chans, statistics
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


def _model(config: ExportConfig) -> tuple[Method | VisionTransformer, ImageStatistics]:
    """The model to write, and the statistics of its images."""
    model, statistics = load(config.weights).float(), load_statistics(config.weights)
    changes = {"img_size": config.img_size, "patch_size": config.patch_size, "in_chans": config.in_chans}
    changed = [name for name, value in changes.items() if value is not None]
    if config.format == "transformers":
        if changed:
            raise InputError(
                f"{changed[0]}: a decoder can't be adapted, and format=transformers has one; leave it out"
            )
        if isinstance(model, Method) and not isinstance(model, MaskedAutoencoder):
            raise InputError(f"{config.weights}: a model of {model.config.method}; format=transformers writes MAE's")
        if not isinstance(model, MaskedAutoencoder):
            raise InputError(
                f"{config.weights}: holds an encoder alone, and format=transformers needs the decoder; "
                "give the run directory, or --format timm"
            )
        return model, statistics
    if not changed:
        return model, statistics
    adapted = adapt_encoder(model, **changes, channels=config.channels)
    return adapted, adapt_statistics(statistics, adapted.in_chans, config.channels)


@torch.no_grad()
def _check(form: Format, folder: Path, model: Method | VisionTransformer) -> float:
    """The largest difference between what was written and the model."""
    generator = torch.Generator().manual_seed(0)
    encoder = backbone_of(model)
    images = torch.randn(_IMAGES, encoder.in_chans, *encoder.img_size, generator=generator)
    largest = 0.0
    for theirs, ours in form.differences(folder, model, images):
        difference = (theirs - ours).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
            raise RuntimeError(
                f"what was written gives other outputs than the model: they differ by {difference:.1e}"
            )
        largest = max(largest, difference)
    return largest


def _tokens(model: Method | VisionTransformer, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B tokens D"]:
    return encoder_of(model).eval().forward_features(images)


def _timm_outputs(folder: Path, model: Method | VisionTransformer, images: Tensor) -> Pairs:
    vit: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return [(vit.forward_features(images), _tokens(model, images))]


def _safetensors_outputs(folder: Path, model: Method | VisionTransformer, images: Tensor) -> Pairs:
    vit = to_timm(model).eval()
    for parameter in vit.parameters():
        parameter.zero_()
    vit.load_state_dict(load_file(folder / "encoder.safetensors"))
    return [(vit.forward_features(images), _tokens(model, images))]


def _onnx_outputs(folder: Path, model: Method | VisionTransformer, images: Tensor) -> Pairs:
    return [(run_onnx(folder / "encoder.onnx", images), _tokens(model, images))]


def _torch_export_outputs(folder: Path, model: Method | VisionTransformer, images: Tensor) -> Pairs:
    program = torch.export.load(folder / "encoder.pt2").module()
    return [(program(images), _tokens(model, images))]


def _transformers_outputs(folder: Path, model: MaskedAutoencoder, images: Tensor) -> Pairs:
    import transformers

    with quiet(transformers):
        whole = transformers.ViTMAEForPreTraining.from_pretrained(folder, local_files_only=True).eval()
        # Nothing masked, and noise that leaves the patches in their order: the tokens are the encoder's.
        encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True, mask_ratio=0.0).eval()
    rows, columns = model.config.grid_size
    order = torch.arange(rows * columns, dtype=torch.float32).expand(len(images), -1)
    tokens = encoder(images, noise=order).last_hidden_state
    # transformers predicts every hidden patch and weights them alike: compared is the model that does so too.
    plain = MaskedAutoencoder(dataclasses.replace(model.config.with_every_target(), gamma=0.0)).eval()
    plain.load_state_dict(model.state_dict())
    noise = torch.rand(order.shape, generator=torch.Generator().manual_seed(0))
    theirs = whole(images, noise=noise)
    hidden = theirs.mask.bool()
    ours = plain(images, hidden.view(-1, rows, columns))
    return [(tokens, _tokens(model, images)), (theirs.logits[hidden], ours.prediction), (theirs.loss, ours.loss)]


def _quoted(path: Path | str) -> str:
    """A path as Python spells it in double quotes, which JSON does alike."""
    return json.dumps(str(path), ensure_ascii=False)


def _timm_snippet(folder: Path, _: Method | VisionTransformer) -> str:
    return f"""\
import timm

vit = timm.create_model({_quoted(f"local-dir:{folder}")}, pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(vit))
"""


def _transformers_snippet(folder: Path, _: Method | VisionTransformer) -> str:
    return f"""\
from transformers import AutoImageProcessor, ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained({_quoted(folder)})
processor = AutoImageProcessor.from_pretrained({_quoted(folder)})
"""


def _onnx_snippet(folder: Path, _: Method | VisionTransformer) -> str:
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession({_quoted(folder / "encoder.onnx")})
(tokens,) = session.run(["tokens"], {{"images": images}})  # float32, normalised, (B, C, h, w)
"""


def _torch_export_snippet(folder: Path, _: Method | VisionTransformer) -> str:
    return f"""\
import torch

encoder = torch.export.load({_quoted(folder / "encoder.pt2")}).module()
tokens = encoder(images)  # normalised, (B, C, h, w)
"""


FORMATS = {
    "timm": Format(save_timm, _timm_outputs, _timm_snippet, timm_transform),
    "transformers": Format(save_hf, _transformers_outputs, _transformers_snippet, transformers_transform),
    "safetensors": Format(
        lambda folder, model, statistics: save_encoder(folder / "encoder.safetensors", model, statistics),
        _safetensors_outputs,
        lambda folder, model: load_snippet(model, folder / "encoder.safetensors"),
    ),
    "onnx": Format(lambda folder, model, _: save_onnx(folder / "encoder.onnx", model), _onnx_outputs, _onnx_snippet),
    "torch-export": Format(
        lambda folder, model, _: save_torch_export(folder / "encoder.pt2", model),
        _torch_export_outputs,
        _torch_export_snippet,
    ),
}
