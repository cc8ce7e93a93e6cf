"""Forward and backward of attention on a CPU: PyTorch's fused kernel against two matrix products and a softmax.

    python benchmarks/attention_cpu.py [--out benchmarks/results/attention_cpu.json]

Shapes are those of ViT-B's encoder and decoder at mask ratio 0.85 and of the demo's decoder. Rounds alternate;
medians, in milliseconds.
"""

import time

import torch
import torch.nn.functional as F
from rounds import medians, read_arguments, report
from torch import Tensor

# Images, heads, tokens, channels of a head.
SHAPES = {"encoder": (16, 12, 30, 64), "decoder": (16, 16, 180, 32), "demo decoder": (256, 4, 43, 32)}


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def milliseconds(function, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    begin = time.perf_counter()
    function(q, k, v).sum().backward()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    arguments = read_arguments(__doc__, rounds=15)
    kernels = {"fused": F.scaled_dot_product_attention, "explicit": explicit}
    found: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):

            def taken(kernel, _: int, shape=shape, dtype=dtype) -> float:
                return milliseconds(kernel, shape, dtype)

            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            found[label] = medians(kernels, taken, arguments.rounds)
    report(found, arguments.out)


if __name__ == "__main__":
    main()
