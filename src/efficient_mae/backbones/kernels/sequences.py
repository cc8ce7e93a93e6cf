"""Sequences of different lengths, packed one behind another without padding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """How the rows of a packed tensor fall into the batch's sequences, the shorter ones first.

    Attributes:
        cu_seqlens: first row of each sequence, and the number of rows.
        lengths: rows of each sequence, ascending; on the host, wherever the rest is.
        max_seqlen: a length that no sequence of this model exceeds, so that compiled code never depends on a batch.
    """

    cu_seqlens: Int32[Tensor, " bounds"]
    lengths: Int64[Tensor, " B"]
    max_seqlen: int

    @classmethod
    def of(cls, lengths: Int64[Tensor, " B"], max_seqlen: int) -> "Sequences":
        """Sequences of these lengths, one behind another."""
        return cls(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(), lengths.cpu(), max_seqlen)

    def __reduce__(self) -> tuple[Any, ...]:
        # Wherever the rest is sent, the lengths are for the host: numbers, not a tensor to be moved.
        return _sequences, (self.cu_seqlens, self.lengths.numpy(), self.max_seqlen)


def _sequences(cu_seqlens: Tensor, lengths: np.ndarray, max_seqlen: int) -> Sequences:
    return Sequences(cu_seqlens, torch.from_numpy(lengths), max_seqlen)
