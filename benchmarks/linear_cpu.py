"""float32 linear maps on a CPU: PyTorch's, which are MKL's, against oneDNN's; forward and backward.

    python benchmarks/linear_cpu.py [--out benchmarks/results/linear_cpu_amd.json]

Shapes are those of the encoder of Efficient MAE 0.85, a ViT-B, at 32 images a step; and of its decoder, whose number
of rows is another in every part of a batch, for which oneDNN compiles its product anew: that is in its times. Rounds
alternate; medians, in milliseconds.
"""

import time

import torch
import torch.nn.functional as F
from rounds import medians, read_arguments, report

from efficient_mae.backbones.kernels.linear import onednn_linear
from efficient_mae.engine.machine.facts import keep_freed_memory

# Rows, inputs, outputs.
ENCODER = {"encoder qkv": (960, 768, 2304), "encoder fc1": (960, 768, 3072), "encoder fc2": (960, 3072, 768)}
DECODER = {"decoder fc1": (2400, 512, 2048), "decoder fc2": (2400, 2048, 512)}


def milliseconds(function, shape: tuple[int, int, int]) -> float:
    """Of the forward and the backward pass."""
    rows, inputs, outputs = shape
    x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    bias, seed = torch.randn(outputs, requires_grad=True), torch.randn(rows, outputs)
    begin = time.perf_counter()
    torch.autograd.grad(function(x, weight, bias), (x, weight, bias), seed)
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    arguments = read_arguments(__doc__, rounds=31)
    keep_freed_memory()
    functions = {"PyTorch's": F.linear, "oneDNN's": onednn_linear}
    found: dict[str, dict[str, float]] = {}
    for name, (rows, inputs, outputs) in (ENCODER | DECODER).items():
        for more in (0, 1) if name in DECODER else (0,):

            def taken(function, number: int, shape=(rows, inputs, outputs), more=more) -> float:
                return milliseconds(function, (shape[0] + number * more, *shape[1:]))

            label = f"{name}, {'other rows every time' if more else 'same rows'}"
            found[label] = medians(functions, taken, arguments.rounds)
    report(found, arguments.out)


if __name__ == "__main__":
    main()
