"""What a training step takes of a device's memory, counted before the first one on tensors that hold no numbers."""

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def count_passes(
    loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any, device: torch.device
) -> tuple[int, int]:
    """Most bytes at any time of the forward pass, and of the backward pass without the gradients that it makes.

    When most of these gradients are there, most of what the forward pass kept is gone. Nothing is computed, and
    nothing allocated.

    Args:
        loss: of a model of this shape on the batch, which it moves to the device; called with a copy of the model in
            evaluation mode.
        model: in its plain form, wherever it is; what it holds itself is not counted.
        batch: on the host.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = hollow(model, device).eval()
        parameters = [parameter for parameter in fake.parameters() if parameter.requires_grad]
        with _Storages([*fake.parameters(), *fake.buffers()]) as storages:
            value = loss(fake, batch)
            passed = len(storages.events)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            made = {storages.number(gradient) for gradient in gradients if gradient is not None}
    before = {number for number, _ in storages.events[:passed]}
    events = [(number, size) for number, size in storages.events if number in before or number not in made]
    return _most(events[:passed]), _most(events, passed)


def hollow(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a module whose tensors are new ones on a device, without its numbers."""
    empty: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device=device) for buffer in model.buffers()}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
    return copy.deepcopy(model, empty)


def _most(events: Sequence[tuple[int, int]], first: int = 0) -> int:
    """Most bytes there at any time from an event on."""
    there = most = 0
    for place, (_, size) in enumerate(events):
        there += size
        most = max(most, there) if place >= first else there
    return most


class _Storages(TorchDispatchMode):
    """Notes the memory that operations take, and when it is let go.

    Attributes:
        events: number of a piece of memory, and its bytes, negative where it is let go.
    """

    def __init__(self, there: Sequence[Tensor]):
        """
        Args:
            there: what isn't counted.
        """
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._numbers: dict[int, int] = {}
        self._count = 0
        for tensor in there:
            self._note(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def number(self, tensor: Tensor) -> int:
        """Of the memory in which a tensor lies."""
        return self._numbers[id(tensor.untyped_storage())]

    def _note(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._numbers:
            return
        self._count += 1
        self._numbers[id(storage)] = self._count
        size = storage.nbytes() if counted else 0
        self.events.append((self._count, size))
        weakref.finalize(storage, self._let_go, id(storage), size)

    def _let_go(self, key: int, size: int) -> None:
        self.events.append((self._numbers.pop(key), -size))
