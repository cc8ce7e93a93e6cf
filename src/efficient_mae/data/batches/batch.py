"""What a step is given. Letters: B images, C channels, H and W height and width in pixels.

Images of 8 bits stay uint8 until they are on the device (`transforms.normalize`): a quarter of the bytes to move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from efficient_mae.flat import Flat

Batch = TypeVar("Batch", bound="EvalBatch")


@dataclasses.dataclass
class EvalBatch:
    """Images in the order of the data set, the unreadable ones left out.

    Attributes:
        images: their pixels, uint8, or float32 from 0 to 1.
        indices: their numbers in the data set.
        labels: their classes, -1 for an image without one; None when the data set is unlabelled.
        damaged: (name, reason) of every unreadable image that was come across for this batch.
    """

    images: Shaped[Tensor, "B C H W"]
    indices: Int64[Tensor, " B"]
    labels: Int64[Tensor, " B"] | None
    damaged: list[tuple[str, str]]

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(getattr(value, "nbytes", 0) for value in vars(self).values())

    def pin_memory(self: Batch) -> Batch:
        """The batch in page-locked memory, with everything in it that can be; DataLoader calls this."""
        return self._map("pin_memory", lambda value: value.pin_memory())

    def to(self: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device, with everything in it that can be moved."""
        return self._map("to", lambda value: value.to(device, non_blocking=non_blocking))

    def _map(self: Batch, method: str, function: Callable[[Any], Any]) -> Batch:
        """The batch with the function applied to all fields that have the method."""
        moved = {name: function(value) for name, value in vars(self).items() if hasattr(value, method)}
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass
class TrainBatch(EvalBatch):
    """A training batch; every unreadable image is replaced by the next readable one of the data set.

    Attributes:
        masks: what `make_masks` made for this batch; None without it.
    """

    masks: Flat[Any] | None = None
