"""Forward and backward of attention on a CPU: PyTorch's fused kernel against two matrix products and a softmax.

    python benchmarks/attention_cpu.py [--out benchmarks/results/attention_cpu.json]

Shapes are those of ViT-B's encoder and decoder at mask ratio 0.85 and of the demo's decoder. Rounds alternate;
medians, in milliseconds.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_mae.engine.machine import describe_machine

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kernels = {"fused": F.scaled_dot_product_attention, "explicit": explicit}
    found: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            times: dict[str, list[float]] = {kernel: [] for kernel in kernels}
            for _ in range(arguments.rounds):
                for kernel, function in kernels.items():
                    times[kernel].append(milliseconds(function, shape, dtype))
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            found[label] = {kernel: round(statistics.median(values), 2) for kernel, values in times.items()}
    machine = describe_machine(torch.device("cpu"))
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "milliseconds": found}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
