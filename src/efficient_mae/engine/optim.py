"""AdamW with a linear warm-up, then half a cosine, as MAE uses it but for its tokens, which MAE decays.

A task may have the rate fall otherwise.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.methods import Method

# The global batch for which base learning rates are stated (MAE, Table 8; Sec. 5.1).
BASE_BATCH_SIZE = 256


def build_adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW with the decay on weight matrices alone. The learning rate is set at each step.

    MAE decays its class and mask tokens too. Here they have been without decay from the first version on, as biases
    and norms are, and a run must go on as it began.
    """
    decayed, plain = [], []
    exempt = model.no_weight_decay() if isinstance(model, Method) else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and not name.endswith("token") and name not in exempt
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


def half_cosine(progress: float) -> float:
    """Share of the highest rate at a point of training, from 0 at the end of the warm-up to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    lowest: float = 0.0,
    fall: Callable[[float], float] = half_cosine,
) -> float:
    """Rate of a step, counted from 0: linear to `peak` over the warm-up, then falling to `lowest` as `fall` says."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return lowest + (peak - lowest) * fall(progress)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group: `rate`, times the group's own `lr_scale` where it has one (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's step, or none at all; decided on the device, so nobody waits to learn which.

    Args:
        skip: bool scalar, on the parameters' device.
        optimizer: whose fused kernels look at it; another takes its step, which is then undone.
    """
    if optimizer.defaults.get("fused"):
        # As torch.amp.GradScaler tells them; there is no scale here.
        optimizer.grad_scale, optimizer.found_inf = None, skip.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        return
    held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    old = {(p, name): value.clone() for p in held for name, value in optimizer.state[p].items()}
    put_back = keep(held)
    optimizer.step()
    put_back(skip)
    for parameter in held:
        for name, value in optimizer.state[parameter].items():
            # LARS and SGD begin a momentum with the first gradient: as they would go on from zero.
            value.copy_(torch.where(skip, old.get((parameter, name), torch.zeros_like(value)), value))


def keep(tensors: Iterable[Tensor]) -> Callable[[Tensor], None]:
    """Note tensors as they are; what is returned puts them back if a bool scalar on their device is true."""
    pairs = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back(where: Tensor) -> None:
        for tensor, old in pairs:
            tensor.copy_(torch.where(where, old, tensor))

    return put_back
