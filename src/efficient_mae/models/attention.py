"""Scaled dot-product attention, dense and packed, on whatever kernel the device does best.

Packed rows are the tokens of sequences of different lengths, one sequence behind another. S rows, B sequences,
N tokens of a dense sequence, h heads, d channels a head.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from efficient_mae.masking import Sequences

# On a CPU, PyTorch's fused bfloat16 backward is several times slower than two matrix products and a softmax
# (benchmarks/attention_cpu.py). Beyond this length the scores would no longer fit the cache.
_EXPLICIT_CPU_LENGTH = 1024


def attention(
    q: Float[Tensor, "B h Nq d"],
    k: Float[Tensor, "B h N d"],
    v: Float[Tensor, "B h N d"],
    bias: Float[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B h Nq d"]:
    """Dense attention; `bias` is added to each key's scores."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _EXPLICIT_CPU_LENGTH:
        with _without_autocast("cpu"):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if bias is not None:
                scores = scores + bias[:, None, None, :].to(scores.dtype)
            return scores.softmax(dim=-1) @ v
    mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def packed_attention(
    q: Float[Tensor, "Sq h d"],
    k: Float[Tensor, "S h d"],
    v: Float[Tensor, "S h d"],
    queries: Sequences,
    keys: Sequences,
) -> Float[Tensor, "Sq h d"]:
    """Attention of each sequence's queries to the same sequence's keys, and to no others."""
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)  # pyright: ignore[reportReturnType]
    bias = None if keys.uniform else keys.padding_bias
    dense = attention(_pad(q, queries), _pad(k, keys), _pad(v, keys), bias)
    rows = dense.transpose(1, 2).flatten(0, 1)  # (B * max_seqlen, h, d)
    return rows if queries.uniform else rows.index_select(0, queries.slots)


def _pad(rows: Float[Tensor, "S h d"], sequences: Sequences) -> Float[Tensor, "B h N d"]:
    """The packed rows as a dense batch, zeros behind the shorter sequences."""
    batch, length = sequences.batch_size, sequences.max_seqlen
    if not sequences.uniform:
        padded = rows.new_zeros(batch * length, *rows.shape[1:])
        rows = padded.index_copy(0, sequences.slots, rows)
    return rows.view(batch, length, *rows.shape[1:]).transpose(1, 2)


def _without_autocast(device: str):
    """Autocast would run a softmax of bfloat16 scores in float32, twice the memory traffic for nothing."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
