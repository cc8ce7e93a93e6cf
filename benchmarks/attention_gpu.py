"""Forward and backward of a ViT encoder's attention on a GPU, by PyTorch's kernels, for few tokens an image.

    python benchmarks/attention_gpu.py [--out FILE]

About 7,680 tokens in all, 16 heads, bfloat16; milliseconds of the device alone, copies between layouts included.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rounds import read_arguments, report
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

TOKENS, HEADS = 7680, 16
KERNELS = {
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
}


def milliseconds(function: Callable[[], None], rounds: int) -> float:
    for _ in range(3):
        function()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(rounds):
            function()
        torch.cuda.synchronize()
    return round(sum(event.self_device_time_total for event in found.key_averages()) / rounds / 1e3, 4)


def taken(kernel: SDPBackend, length: int, width: int, rounds: int) -> float:
    shape = (TOKENS // length, length, 3, HEADS, width)
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(shape[0], HEADS, length, width, device="cuda", dtype=torch.bfloat16)

    def function() -> None:
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        with sdpa_kernel(kernel):
            F.scaled_dot_product_attention(q, k, v).backward(grad)
        qkv.grad = None

    return milliseconds(function, rounds)


def main() -> None:
    arguments = read_arguments(__doc__, rounds=10)
    found = {
        f"{length} tokens, {width} channels a head": {
            name: taken(kernel, length, width, arguments.rounds) for name, kernel in KERNELS.items()
        }
        for width in (64, 80)
        for length in (11, 20, 30, 50, 64, 99, 197)
    }
    report(found, arguments.out, "cuda")


if __name__ == "__main__":
    main()
