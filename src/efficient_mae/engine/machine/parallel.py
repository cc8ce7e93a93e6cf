"""How a model is spread over devices: its blocks compiled, then the whole replicated (DDP) or sharded (FSDP2).

All of it is applied from outside, in the order in which the parts have to wrap each other: activation checkpointing
(the model's own, set by its task), compilation, sharding. The model holds architecture only.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from efficient_mae.backbones.vit import Block
from efficient_mae.console import say
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.errors import InputError
from efficient_mae.ranges import Switch

PARALLEL = ("ddp", "fsdp")


def parallelize(
    model: nn.Module, processes: Processes, *, parallel: str = "ddp", precision: str = "fp32", compile: Switch = False
) -> nn.Module:
    """The model as its training step calls it: on its device, averaging gradients over the processes.

    Changes the model in place. Where it is sharded its parameters are replaced, under the same names; so an
    optimiser is built afterwards.

    Args:
        model: what is trained.
        processes: that train it together; one alone has nobody to share with, whatever `parallel` says.
        parallel: one of :data:`PARALLEL`.
        precision: `bf16` or `fp32`.
        compile: the transformer blocks; `auto` on a GPU where :func:`compiles`.

    Raises:
        InputError: `compile` is true, and there are no blocks of this package's.
    """
    model.to(processes.device)
    if compile is True or (compile == "auto" and any(_blocks(model)) and compiles(processes)):
        compile_blocks(model)
    if processes.world_size == 1:
        return model
    if parallel == "fsdp":
        shard(model, processes, precision)
        return model
    with warnings.catch_warnings():
        # PyTorch 2.15 calls the argument forward_sync_buffers, which 2.11 doesn't know.
        warnings.simplefilter("ignore", FutureWarning)
        # Positions are the same everywhere and never change.
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def compiles(processes: Processes) -> bool:
    """Whether torch.compile is worth a try on this device, and works: it needs Triton and a C compiler there."""
    if processes.device.type != "cuda":
        return False
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=processes.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # its own, its compiler's, or the system's
        if processes.is_main:
            said = str(getattr(error, "inner_exception", error)).partition("Set TORCHDYNAMO")[0].split("\n")
            why = next(filter(None, map(str.strip, reversed(said))), type(error).__name__)
            say(f"compile=auto: torch.compile does not work here ({why}); the blocks run as they are")
        return False
    return True


def compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block, in place: one graph serves them all, for whatever number of packed tokens.

    Raises:
        InputError: there is none that is this package's.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise InputError("compile=true: blocks of this model are timm's, which are not compiled here; compile=false")
    for block in blocks:
        block.compile(dynamic=True)
        for name in block.entries:
            setattr(block, name, torch.compile(getattr(block, name), dynamic=True))


def shard(model: nn.Module, processes: Processes, precision: str) -> None:
    """Shard parameters, gradients and optimiser state over all processes, block by block (FSDP2).

    In bf16 a GPU gathers parameters in bf16, half the traffic, and sums gradients in float32; the shards, which the
    optimiser changes, stay float32. What autocast computes in float32 it still does.
    """
    # On a CPU autocast leaves layer norms as they are, and those refuse parameters of another type than their input.
    half = precision == "bf16" and processes.device.type == "cuda"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32 if half else None,
        # Between the blocks tokens are float32, as under autocast alone.
        cast_forward_inputs=False,
    )
    for block in _blocks(model):
        fully_shard(block, mesh=processes.mesh, mp_policy=policy)
        for name in block.entries:
            register_fsdp_forward_method(block, name)
    fully_shard(model, mesh=processes.mesh, mp_policy=policy)


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds a part of every parameter."""
    return isinstance(module, FSDPModule)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part; every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' part of a whole tensor that all processes hold, laid out as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class Skeleton:
    """Makes ordinary modules of sharded ones, for what one process does alone: pictures, neighbours, files.

    Args:
        model: not yet sharded; its shape is kept, not its numbers.
    """

    def __init__(self, model: nn.Module):
        self._empty = hollow(model, torch.device("meta"))

    def fill(self, sharded: nn.Module, wanted: bool = True) -> nn.Module:
        """A copy of a sharded module of this shape, with whole tensors, in the same mode.

        Every process calls this, for each gives its part; where the copy isn't wanted it isn't made, and the
        sharded module comes back.
        """
        device = next(sharded.parameters()).device
        filled = copy.deepcopy(self._empty).to_empty(device=device) if wanted else sharded
        targets = filled.state_dict() if wanted else {}
        for name, tensor in sharded.state_dict().items():
            whole = whole_tensor(tensor)
            if wanted:
                targets[name].copy_(whole)
        if wanted:
            for ours, theirs in zip(filled.buffers(), sharded.buffers(), strict=True):  # some are in no state dict
                ours.copy_(theirs)
        return filled.train(sharded.training)


def _blocks(model: nn.Module) -> Iterator[Block]:
    """The units of compilation and of sharding."""
    return (module for module in model.modules() if isinstance(module, Block))
