"""A batch that does not fit the device: which setting to lower, and what would fit, as far as can be measured."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from efficient_mae.engine.free_memory import free_memory, refusing_more_than_is_free
from efficient_mae.engine.settings import RunConfig
from efficient_mae.errors import InputError

GIB = 2**30

# Images of the two small batches whose difference is what an image takes; even, for mixup pairs them.
_PROBES = (2, 4)
# Share of the free memory that a plan may count on: the rest goes to fragments and to what wasn't measured.
_USABLE = 0.9

# What PyTorch says, and oneDNN of an operation that it has (one that it lacks fails at its descriptor).
_HOST_MESSAGES = re.compile("can't allocate memory|could not create a primitive(?! descriptor)")


@contextmanager
def explain_out_of_memory(
    config: RunConfig,
    world_size: int,
    device: torch.device,
    optimizer: torch.optim.Optimizer,
    probe: Callable[[int], Tensor] | None,
) -> Iterator[None]:
    """Turn running out of memory, on a GPU or on the host, into advice.

    On a CPU what is free now is all that may be taken within.

    Args:
        config: of the run, with its batch size.
        world_size: processes that share the batch.
        device: that the run computes on.
        optimizer: of the parameters that are trained.
        probe: the loss of a batch of so many images; None where it cannot be had from one process alone.

    Raises:
        InputError: the memory ran out; says what is too large and what would fit.
    """
    try:
        with refusing_more_than_is_free() if device.type == "cpu" else nullcontext():
            yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The failed step's tensors live in its frames.
        traceback.clear_frames(error.__traceback__)
    else:
        return
    optimizer.zero_grad(set_to_none=True)
    free = free_memory(device)
    fits = None if probe is None or free is None else largest_batch(free, optimizer, probe, device)
    raise InputError(advice(config, world_size, device, free, fits))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a GPU's or the host's allocator that had no more to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_HOST_MESSAGES.search(str(error)))


def advice(config: RunConfig, world_size: int, device: torch.device, free: int | None, fits: int | None) -> str:
    """One line: what doesn't fit, and which settings would.

    Args:
        free: bytes beside the model's weights; None if that isn't known.
        fits: images of the largest micro-batch that does; None if that isn't known.
    """
    batch_size = config.batch_size or 0
    micro = batch_size // (config.accum_iter * world_size)
    room = "the memory" if free is None else f"the {free / GIB:.1f} GiB"
    what = (
        f"batch_size={batch_size}: its micro-batches of {micro} images do not fit in {room} "
        f"that {device} has beside the model's weights"
    )
    ways = []
    if getattr(config, "grad_checkpointing", True) is False:
        ways.append("pass --grad_checkpointing true")
    if fits == 0:
        if world_size > 1 and config.parallel == "ddp":
            ways.append("pass --parallel fsdp")
        return f"{what}, nor would a single image: {', or '.join(ways) or 'take a smaller model or more processes'}"
    target = min(micro // 2, micro if fits is None else fits)
    smaller = [
        accum
        for accum in range(config.accum_iter + 1, batch_size // world_size + 1)
        if batch_size % (accum * world_size) == 0 and batch_size // (accum * world_size) <= target
    ]
    if smaller:
        images = batch_size // (smaller[0] * world_size)
        ways.insert(0, f"raise --accum_iter to {smaller[0]} (micro-batches of {images}, same result)")
    about = "" if fits is None else f": about {min(fits, micro - 1)} would"
    return f"{what}{about}; {', or '.join([*ways, 'lower --batch_size'])}"


def largest_batch(
    free: int, optimizer: torch.optim.Optimizer, probe: Callable[[int], Tensor], device: torch.device
) -> int | None:
    """Images whose training step takes no more than so many bytes, from the cost of a few; 0 if not even those fit.

    Args:
        free: bytes beside the model's weights.
        optimizer: whose state is counted where it isn't there yet (two numbers a parameter, as AdamW keeps).
        probe: the loss of a batch of so many images. A few are one part of the decoder's: what it keeps is counted
            for every image, so more may fit where it works in parts.
        device: that is computed on.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    fixed = weights * (1 if optimizer.state else 3)
    try:
        few, more = (step_bytes(probe, images, parameters, device) for images in _PROBES)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 0
    each = (more - few) / (_PROBES[1] - _PROBES[0])
    rest = max(0.0, few - each * _PROBES[0])
    return max(0, int((free * _USABLE - fixed - rest) / each)) if each > 0 else None


def step_bytes(
    probe: Callable[[int], Tensor], images: int, parameters: list[nn.Parameter], device: torch.device
) -> int:
    """Bytes that a forward and a backward pass over so many images take beside weights and gradients.

    On a GPU the peak of its allocator, less the gradients; on a CPU, which keeps no such record, what the forward
    pass keeps for the backward pass.
    """
    if device.type != "cuda":
        return _kept_bytes(probe, images, parameters)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    # Gradients are returned, not accumulated: so nothing tells other processes of them.
    torch.autograd.grad(probe(images), parameters, allow_unused=True)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return max(0, torch.cuda.max_memory_allocated(device) - before - gradients)


def _kept_bytes(probe: Callable[[int], Tensor], images: int, parameters: list[nn.Parameter]) -> int:
    kept = {}
    held = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = probe(images)
    del loss  # only now may their addresses be used again
    return sum(kept.values())
