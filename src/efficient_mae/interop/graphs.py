"""A model as a graph that runs without this software: ONNX, and torch.export's `.pt2`.

Both take `images`, normalised, (B, C, h, w) for any B. An encoder gives `tokens`, (B, 1 + N, D): the class token,
then the N patches row by row, after the last norm. A classifier gives `logits`, (B, K), and the file holds the
classes' names, as a list in JSON: ONNX's in its metadata, a `.pt2` as a file in it.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.backbones import VisionTransformer
from efficient_mae.errors import InputError
from efficient_mae.interop.classifiers import Classifier
from efficient_mae.interop.timm_models import to_timm
from efficient_mae.methods import Method, backbone_of

# An ONNX file is one protobuf message, of 2 GiB at most; beyond this the weights lie in a file beside it.
_LARGEST_ONNX = 1.5 * 2**30


class _Tokens(nn.Module):
    """timm's ViT with `forward_features` as its forward pass: timm keeps its models fit for export."""

    def __init__(self, model: Method | VisionTransformer):
        super().__init__()
        self.vit = to_timm(model).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)


# Under which name a file holds the classes.
CLASSES = "classes"


def save_torch_export(file: Path, model: Method | VisionTransformer | Classifier) -> None:
    """Write a `.pt2` that `torch.export.load(file).module()` runs.

    Raises:
        OSError: the disk is full or not writable.
    """
    with _quiet():
        torch.export.save(_export(model), file, extra_files=_classes(model))


def save_onnx(file: Path, model: Method | VisionTransformer | Classifier) -> None:
    """Write an ONNX file, weights within (beside it if they don't fit).

    Raises:
        InputError: what PyTorch's exporter needs isn't installed.
        OSError: the disk is full or not writable.
    """
    require_onnx()
    program = _export(model)
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    with _quiet():
        made = torch.onnx.export(
            program, input_names=["images"], output_names=[output_name(model)], dynamo=True, verbose=False
        )
        if made is None:
            raise RuntimeError("PyTorch's ONNX exporter gave nothing back")
        made.model.metadata_props.update(_classes(model))
        made.save(file, external_data=size > _LARGEST_ONNX)


def run_onnx(file: Path, images: Tensor) -> tuple[Tensor, str]:
    """What onnxruntime computes, on the CPU, and the classes' names that the file holds; "" where it holds none."""
    session = require_onnx().InferenceSession(file, providers=["CPUExecutionProvider"])
    classes = session.get_modelmeta().custom_metadata_map.get(CLASSES, "")
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), classes


def output_name(model: Method | VisionTransformer | Classifier) -> str:
    """What a model's graph gives."""
    return "logits" if isinstance(model, Classifier) else "tokens"


def _classes(model: Method | VisionTransformer | Classifier) -> dict[str, str]:
    return {CLASSES: json.dumps(model.head.classes)} if isinstance(model, Classifier) else {}


def require_onnx() -> Any:
    """onnxruntime.

    Raises:
        InputError: it, or what PyTorch's exporter needs, isn't installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} isn't installed; pip install 'efficient-mae[onnx]'") from None
    return onnxruntime


def _export(model: Method | VisionTransformer | Classifier) -> torch.export.ExportedProgram:
    classifies = isinstance(model, Classifier)
    sized, module = (model, model.vit) if classifies else (backbone_of(model), _Tokens(model))
    # Two images: PyTorch takes a dimension of one for a constant.
    example = torch.zeros(2, sized.in_chans, *sized.img_size)
    # By its place: timm's forward pass has another name for it.
    batch = ({0: torch.export.Dim("batch")},)
    return torch.export.export(module, (example,), dynamic_shapes=batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own inner workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
