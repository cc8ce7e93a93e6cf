"""AdamW as MAE uses it: no decay on biases, norms and tokens; linear warm-up, then half a cosine."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# The global batch for which base learning rates are stated (MAE, Table 8; Sec. 5.1).
BASE_BATCH_SIZE = 256


def build_adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW with the decay on weight matrices alone. The learning rate is set at each step."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and not name.endswith("token")
            (decayed if matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return adamw(groups, betas)


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW of parameter groups, in fused kernels where there are some. The learning rate is set at each step."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=_fused(parameters))


def _fused(parameters: Iterable[torch.Tensor]) -> bool | None:
    """Fused kernels where PyTorch has them; None leaves the choice to PyTorch."""
    return True if all(p.device.type in ("cpu", "cuda") for p in parameters) else None


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Rate of the step with this index (from 0): linear to `peak` over the warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group: `rate`, times the group's own `lr_scale` where it has one (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
