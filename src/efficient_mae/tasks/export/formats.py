"""The forms that `emae export` writes: each is written, loaded back with the other library's own call, and compared.

B images, C channels, h x w pixels, D width, K classes.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.interop import ImageStatistics, encoder_of, load_snippet, save_encoder, to_timm
from efficient_mae.interop.classifiers import Classifier
from efficient_mae.interop.graphs import CLASSES, output_name, run_onnx, save_onnx, save_torch_export
from efficient_mae.interop.hf.images import needs_own_processor, quiet
from efficient_mae.interop.hf.vit_mae import HF_CLASSES, hf_kind, save_hf, save_hf_classifier
from efficient_mae.interop.timm_models import quoted, save_timm, timm_snippet
from efficient_mae.methods import Method
from efficient_mae.methods.beit import BEiT
from efficient_mae.methods.mae import MaskedAutoencoder
from efficient_mae.methods.simmim import SimMIM
from efficient_mae.tasks.export.images import Transform, timm_transform, transformers_transform

Model = Method | Backbone | Classifier

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


def _outputs(model: Model, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B ..."]:
    """Ours: an encoder's tokens (B, 1 + N, D), or a classifier's logits (B, K)."""
    if isinstance(model, Classifier):
        return model.vit(images)
    return encoder_of(model).eval().forward_features(images)


def _timm_outputs(folder: Path, model: Model, images: Tensor) -> Pairs:
    vit: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if isinstance(model, Classifier):
        check_names(vit.pretrained_cfg["label_names"], model)
        return [(vit(images), _outputs(model, images))]
    return [(vit.forward_features(images), _outputs(model, images))]


def check_names(found: Any, model: Classifier) -> None:
    """Raise RuntimeError unless a library has found the classes' names."""
    if tuple(found) != model.head.classes:
        raise RuntimeError(f"what was written gives the classes other names: {list(found)[:5]} ...")


def _safetensors_outputs(folder: Path, model: Method | Backbone, images: Tensor) -> Pairs:
    vit = to_timm(model).eval()
    for parameter in vit.parameters():
        parameter.zero_()
    vit.load_state_dict(load_file(folder / "encoder.safetensors"))
    return [(vit.forward_features(images), _outputs(model, images))]


def _onnx_outputs(folder: Path, model: Model, images: Tensor) -> Pairs:
    found, classes = run_onnx(folder / _graph(model, "onnx"), images)
    if isinstance(model, Classifier):
        check_names(json.loads(classes), model)
    return [(found, _outputs(model, images))]


def _torch_export_outputs(folder: Path, model: Model, images: Tensor) -> Pairs:
    kept = {CLASSES: ""}
    program = torch.export.load(folder / _graph(model, "pt2"), extra_files=kept).module()
    if isinstance(model, Classifier):
        check_names(json.loads(kept[CLASSES]), model)
    return [(program(images), _outputs(model, images))]


def _transformers_outputs(folder: Path, model: Method, images: Tensor) -> Pairs:
    import transformers

    if not isinstance(model, MaskedAutoencoder):
        return _transformers_predictions(folder, cast(BEiT | SimMIM, model), images)
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
    return [(tokens, _outputs(model, images)), (theirs.logits[hidden], ours.prediction), (theirs.loss, ours.loss)]


def _transformers_predictions(folder: Path, model: BEiT | SimMIM, images: Tensor) -> Pairs:
    """Of every patch or pixel, with hidden patches among them; the loss too where it needs no tokenizer."""
    import transformers

    with quiet(transformers):
        hf = getattr(transformers, _transformers_class(folder)).from_pretrained(folder, local_files_only=True).eval()
    plan = model.eval().plan(len(images), torch.Generator().manual_seed(0))
    theirs = hf(images, bool_masked_pos=plan.mask.flatten(1))
    if isinstance(model, BEiT):
        latent = model.backbone.forward_masked(images, plan.mask, model.mask_token)
        return [(theirs.logits, model.lm_head(latent).flatten(1, 2))]
    ours = model(images, plan)
    return [(theirs.reconstruction, ours.reconstruction), (theirs.loss, ours.loss)]


def _transformers_class(folder: Path) -> str:
    return HF_CLASSES[cast(str, hf_kind(folder))]


def _transformers_classifier_outputs(folder: Path, model: Classifier, images: Tensor) -> Pairs:
    import transformers

    with quiet(transformers):
        hf = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    check_names([hf.config.id2label[number] for number in range(len(model.head.classes))], model)
    return [(hf(images).logits, _outputs(model, images))]


def _graph(model: Model, ending: str) -> str:
    return f"{'classifier' if isinstance(model, Classifier) else 'encoder'}.{ending}"


def _processor_line(folder: Path, in_chans: int) -> str:
    code = ", trust_remote_code=True" if needs_own_processor(in_chans) else ""
    return f"processor = AutoImageProcessor.from_pretrained({quoted(folder)}{code})\n"


def _transformers_snippet(folder: Path, model: Method) -> str:
    name = _transformers_class(folder)
    return f"""\
from transformers import AutoImageProcessor, {name}

model = {name}.from_pretrained({quoted(folder)})
{_processor_line(folder, model.config.in_chans)}"""


def _transformers_classifier_snippet(folder: Path, model: Classifier) -> str:
    return f"""\
from transformers import AutoImageProcessor, AutoModelForImageClassification  # timm does the work

model = AutoModelForImageClassification.from_pretrained({quoted(folder)})
{_processor_line(folder, model.in_chans)}"""


def _onnx_snippet(folder: Path, model: Model) -> str:
    name = output_name(model)
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession({quoted(folder / _graph(model, "onnx"))})
({name},) = session.run(["{name}"], {{"images": images}})  # float32, normalised, (B, C, h, w)
"""


def _torch_export_snippet(folder: Path, model: Model) -> str:
    return f"""\
import torch

model = torch.export.load({quoted(folder / _graph(model, "pt2"))}).module()
{output_name(model)} = model(images)  # normalised, (B, C, h, w)
"""


FORMATS = {
    "timm": Format(save_timm, _timm_outputs, lambda folder, _: timm_snippet(folder), timm_transform),
    "transformers": Format(save_hf, _transformers_outputs, _transformers_snippet, transformers_transform),
    "safetensors": Format(
        lambda folder, model, statistics: save_encoder(folder / "encoder.safetensors", model, statistics),
        _safetensors_outputs,
        lambda folder, model: load_snippet(model, folder / "encoder.safetensors"),
    ),
    "onnx": Format(
        lambda folder, model, _: save_onnx(folder / _graph(model, "onnx"), model), _onnx_outputs, _onnx_snippet
    ),
    "torch-export": Format(
        lambda folder, model, _: save_torch_export(folder / _graph(model, "pt2"), model),
        _torch_export_outputs,
        _torch_export_snippet,
    ),
}

# Those of a classifier. (Its weights alone are in its run's directory, and in what is written for timm.)
CLASSIFIER_FORMATS = {name: FORMATS[name] for name in ("timm", "onnx", "torch-export")} | {
    "transformers": Format(
        save_hf_classifier,
        _transformers_classifier_outputs,
        _transformers_classifier_snippet,
        transformers_transform,
    )
}
