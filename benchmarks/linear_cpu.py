"""float32 linear maps on a CPU: PyTorch's, which are MKL's, against oneDNN's; forward and backward.

    python benchmarks/linear_cpu.py [--out benchmarks/results/linear_cpu.json]

Shapes are those of Efficient MAE 0.85 with a ViT-B at 32 images a step. Rounds alternate; medians, in GFLOP/s.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from efficient_mae.engine.machine import describe_machine, keep_freed_memory
from efficient_mae.models.linear import onednn_linear

# Rows, inputs, outputs.
SHAPES = {
    "encoder qkv": (960, 768, 2304),
    "encoder fc1": (960, 768, 3072),
    "encoder fc2": (960, 3072, 768),
    "decoder qkv": (2400, 512, 1536),
    "decoder fc1": (2400, 512, 2048),
    "decoder fc2": (2400, 2048, 512),
}


def gflops(function, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Of the forward and of the backward pass."""
    rows, inputs, outputs = shape
    operations = 2 * rows * inputs * outputs / 1e9
    x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    bias, seed = torch.randn(outputs, requires_grad=True), torch.randn(rows, outputs)
    begin = time.perf_counter()
    y = function(x, weight, bias)
    between = time.perf_counter()
    torch.autograd.grad(y, (x, weight, bias), seed)
    return operations / (between - begin), 2 * operations / (time.perf_counter() - between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    functions = {"PyTorch's": F.linear, "oneDNN's": onednn_linear}
    found: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        rates: dict[str, list[tuple[float, float]]] = {library: [] for library in functions}
        for _ in range(arguments.rounds):
            for library, function in functions.items():
                rates[library].append(gflops(function, shape))
        for index, direction in enumerate(("forward", "backward")):
            found[f"{name}, {direction}"] = {
                library: round(statistics.median(both[index] for both in values), 1)
                for library, values in rates.items()
            }
    machine = describe_machine(torch.device("cpu"))
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "gflops": found}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
