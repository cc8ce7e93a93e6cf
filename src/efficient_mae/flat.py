"""Objects whose tensors lie in one buffer, to be sent between processes and to a device as a single tensor."""

import io
import pickle
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

T = TypeVar("T")

# Every tensor begins at a multiple of so many bytes, as one of its own would: kernels rely on it.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Flat(Generic[T]):
    """An object, its tensors end to end.

    A tensor that goes from one process to another is a file of its own, and one that goes to a GPU a copy of its own;
    what belongs to a batch may be hundreds.

    Attributes:
        skeleton: the object, pickled, with a place in the buffer for each tensor.
        buffer: all of them.
    """

    skeleton: bytes
    buffer: UInt8[Tensor, " bytes"]

    @classmethod
    def of(cls, value: T) -> "Flat[T]":
        """Copy the object's tensors, which lie on one device and carry no gradient."""
        skeleton = io.BytesIO()
        pickler = _Pickler(skeleton)
        pickler.dump(value)
        device = pickler.tensors[0][1].device if pickler.tensors else None
        buffer = torch.empty(pickler.end, dtype=torch.uint8, device=device)
        for begin, tensor in pickler.tensors:
            _place(buffer, begin, tensor.shape, tensor.dtype).copy_(tensor)
        return cls(skeleton.getvalue(), buffer)

    @cached_property
    def value(self) -> T:
        """The object; its tensors are views of the buffer."""
        return _Unpickler(io.BytesIO(self.skeleton), self.buffer).load()

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return self.buffer.nbytes

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Flat[T]":
        """The same on another device; to the host it always waits, since what comes there is read at once."""
        device = torch.device(device)
        return Flat(self.skeleton, self.buffer.to(device, non_blocking=non_blocking and device.type != "cpu"))

    def pin_memory(self) -> "Flat[T]":
        """The same in page-locked memory, from which copies to a GPU overlap with its work."""
        return Flat(self.skeleton, self.buffer.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        return Flat, (self.skeleton, self.buffer)  # without the value


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.tensors: list[tuple[int, Tensor]] = []
        self.end = 0

    def persistent_id(self, obj: Any) -> tuple[int, torch.Size, torch.dtype] | None:
        if not isinstance(obj, Tensor):
            return None
        begin = -(-self.end // _ALIGNMENT) * _ALIGNMENT
        self.tensors.append((begin, obj))
        self.end = begin + obj.numel() * obj.element_size()
        return begin, obj.shape, obj.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffer: Tensor):
        super().__init__(file)
        self._buffer = buffer

    def persistent_load(self, pid: tuple[int, torch.Size, torch.dtype]) -> Tensor:
        return _place(self._buffer, *pid)


def _place(buffer: Tensor, begin: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return buffer[begin : begin + shape.numel() * dtype.itemsize].view(dtype).view(shape)
