"""Linear maps, on whatever library the device multiplies float32 matrices fastest with."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from efficient_mae.backbones.kernels.operators import versioned, works

# Multiply-accumulates from which a product is worth an operator of Python's and a compiled product's memory.
_LARGE = 1 << 27


def _is_amds() -> bool:
    """Whether the processor is one of AMD's, as far as Linux says: in the first lines of what may be thousands."""
    try:
        with Path("/proc/cpuinfo").open() as processors:
            return any("AuthenticAMD" in line for line in islice(processors, 5))
    except OSError:
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By a private operator of PyTorch's, which its compiler uses."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_ONEDNN_IS_FASTER = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and _is_amds()
    and works(lambda one: _onednn(one, one[0], None))
)


class Linear(nn.Linear):
    """torch.nn.Linear by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, for x (..., in) and weight (out, in).

    On a CPU, PyTorch leaves products of float32 to MKL, which gives other makers' processors than Intel's a generic
    path. oneDNN's are faster there, not on Intel's (benchmarks/linear_cpu.py), and PyTorch has them as an operator.
    """
    if _ONEDNN_IS_FASTER and _is_large_float32(x, weight):
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_large_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether both lie on the CPU as float32, and autocast leaves them so."""
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return x.numel() * len(weight) >= _LARGE  # last: compiled code that asks for a size is for such sizes alone


@torch.library.custom_op(versioned("onednn_linear", __name__), mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`linear` by oneDNN; an operator of its own, since compiled code takes oneDNN's for inference alone."""
    return _onednn(x, weight, bias)


@onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    rows = grad.flatten(0, -2)
    return (
        onednn_linear(grad, weight.t(), None) if wants_x else None,
        rows.t() @ x.flatten(0, -2) if wants_weight else None,  # where MKL is no slower
        rows.sum(dim=0) if wants_bias else None,
    )


onednn_linear.register_autograd(_backward, setup_context=_keep_for_backward)


@register_flop_formula(onednn_linear._opoverload.overloadpacket, get_raw=True)
def _(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * len(weight)
