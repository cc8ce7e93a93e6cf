"""What the bits of a result depend on, besides the code and the seed."""

from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> dict[str, str]:
    """Processor, the instructions that PyTorch uses of it, and versions of what computes or decodes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        **{name: facts.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")},
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
    }
