"""The encoder as a graph that runs without this software: ONNX, and torch.export's `.pt2`.

Both take `images`, normalised, (B, C, h, w) for any B, and give `tokens`, (B, 1 + N, D): the class token, then the
N patches row by row, after the last norm.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.errors import InputError
from efficient_mae.interop.timm_models import to_timm
from efficient_mae.methods import Method, backbone_of

# An ONNX file is one protobuf message, of 2 GiB at most; beyond this the weights lie in a file beside it.
_LARGEST_ONNX = 1.5 * 2**30


class _Tokens(nn.Module):
    """timm's ViT with `forward_features` as its forward pass: timm keeps its models fit for export."""

    def __init__(self, model: Method | Backbone):
        super().__init__()
        self.vit = to_timm(model).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)


def save_torch_export(file: Path, model: Method | Backbone) -> None:
    """Write the encoder as a `.pt2` that `torch.export.load(file).module()` runs.

    Raises:
        OSError: the disk is full or not writable.
    """
    with _quiet():
        torch.export.save(_export(model), file)


def save_onnx(file: Path, model: Method | Backbone) -> None:
    """Write the encoder as an ONNX file, weights within (beside it if they don't fit).

    Raises:
        InputError: what PyTorch's exporter needs isn't installed.
        OSError: the disk is full or not writable.
    """
    require_onnx()
    size = sum(value.numel() * value.element_size() for value in backbone_of(model).state_dict().values())
    with _quiet():
        torch.onnx.export(
            _export(model),
            f=file,
            input_names=["images"],
            output_names=["tokens"],
            dynamo=True,
            external_data=size > _LARGEST_ONNX,
            verbose=False,
        )


def run_onnx(file: Path, images: Tensor) -> Tensor:
    """The tokens that onnxruntime computes, on the CPU."""
    session = require_onnx().InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["tokens"], {"images": images.numpy()})[0])


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


def _export(model: Method | Backbone) -> torch.export.ExportedProgram:
    # Two images: PyTorch takes a dimension of one for a constant.
    encoder = backbone_of(model)
    example = torch.zeros(2, encoder.in_chans, *encoder.img_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(_Tokens(model), (example,), dynamic_shapes=batch)


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
