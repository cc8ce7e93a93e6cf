"""Micro-batches on their device: on a GPU, the next step's are copied while a step is computed."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


class DevicePrefetcher:
    """Hands over a step's micro-batches on the device; elsewhere than on CUDA it never looks ahead.

    Args:
        batches: an endless stream of micro-batches, which a loader has pinned; each has `to`.
        device: where they go.
        accum_iter: micro-batches of a step.
    """

    def __init__(self, batches: Iterator[Any], device: torch.device, accum_iter: int):
        self._batches, self._device, self._accum_iter = batches, device, accum_iter
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: list[Any] | None = None

    def take(self) -> list[Any]:
        """The next step's micro-batches, which the current stream may use at once; the host waits for no copy."""
        ahead = self._ahead if self._ahead is not None else self._moved()
        self._ahead = None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in _tensors(ahead):
                # The side stream's memory must not be given to a later copy before this step is done with it.
                if tensor.is_cuda:
                    tensor.record_stream(current)
        return ahead

    def look_ahead(self) -> None:
        """Start to copy the following step's micro-batches, once the kernels of the step before are queued."""
        if self._stream is not None and self._ahead is None:
            self._ahead = self._moved()

    def _moved(self) -> list[Any]:
        # Images may be decoded here, on the side stream too. Elsewhere nothing of CUDA's is touched.
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return [next(self._batches).to(self._device, non_blocking=True) for _ in range(self._accum_iter)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of lists, tuples and dataclasses, nested ones too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
