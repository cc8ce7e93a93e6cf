"""Scaled dot-product attention, dense and packed, on whatever kernel the device does best.

Packed rows are the tokens of sequences of different lengths, one sequence behind another. S rows, B sequences,
N tokens of a dense sequence, M of which are asked, h heads, d channels a head.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from efficient_mae.backbones.kernels.operators import versioned, works
from efficient_mae.backbones.kernels.sequences import Sequences

# On a CPU, PyTorch's fused bfloat16 backward is several times slower than two matrix products and a softmax
# (benchmarks/attention_cpu.py). Beyond this length the scores would no longer fit the cache.
_EXPLICIT_CPU_LENGTH = 1024

# Tokens, and channels of a head, up to which PyTorch's memory-efficient kernel is faster on a GPU than those that it
# prefers, whose tiles are larger than such a sequence (benchmarks/results/gpu/attention.json).
_SHORT_GPU_LENGTH, _NARROW_GPU_HEAD = 64, 64

# Scores of a group that are worked on at a time where attention isn't fused, so that they stay in cache.
_GROUP_SCORES = 1 << 20

# On a CPU, oneDNN compiles a bfloat16 product anew for every shape, and groups are of ever new ones. Up to this
# length that takes longer than the product itself in float32.
_FLOAT32_CPU_LENGTH = 64


def attention(
    q: Float[Tensor, "B h M d"], k: Float[Tensor, "B h N d"], v: Float[Tensor, "B h N d"]
) -> Float[Tensor, "B h M d"]:
    """Dense attention of M queries to N keys."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _EXPLICIT_CPU_LENGTH:
        with _without_autocast("cpu"):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            return scores.softmax(dim=-1) @ v
    if q.is_cuda and _suits_efficient_kernel(q, k):
        # Math stands for what is no GPU: tensors without numbers, on which memory is counted.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _suits_efficient_kernel(q: Tensor, k: Tensor) -> bool:
    width = q.shape[-1]
    return k.shape[2] <= _SHORT_GPU_LENGTH and width <= _NARROW_GPU_HEAD and width % 8 == 0


def packed_attention(
    q: Float[Tensor, "Sq h d"],
    k: Float[Tensor, "S h d"],
    v: Float[Tensor, "S h d"],
    queries: Sequences,
    keys: Sequences,
) -> Float[Tensor, "Sq h d"]:
    """Attention of each sequence's queries to the same sequence's keys, and to no others."""
    if not len(q):  # no kernel need be asked what it makes of nothing; the gradients are zeros, also those of k and v
        return q + k[:0] + v[:0]
    if _has_packed_kernel(q):
        from torch.nn.attention.varlen import varlen_attn

        # A window as wide as the longest sequence leaves nothing out, but cuDNN takes no window. From 2.14 on PyTorch
        # prefers cuDNN to FlashAttention on Hopper and Blackwell, and plans anew, for tens of milliseconds, at every
        # new number of rows (MHAParams in aten/src/ATen/native/cudnn/MHA.cpp).
        widest = max(queries.max_seqlen, keys.max_seqlen)
        lengths = (queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)
        return varlen_attn(q, k, v, *lengths, window_size=(widest, widest))  # pyright: ignore[reportReturnType]
    return grouped_attention(q, k, v, queries.lengths, keys.lengths, keys.max_seqlen)[0]


def _has_packed_kernel(q: Tensor) -> bool:
    """Whether PyTorch's, which is FlashAttention, takes it: other types and other widths of a head it refuses."""
    half = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


@torch.library.custom_op(versioned("grouped_attention", __name__), mutates_args=())
def grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor]:
    """Packed attention without a packed kernel: the sequences of one length are a dense batch; nothing is padded.

    An operator of its own, so that compiled code sees neither the groups nor their number change.

    Args:
        q: (Sq, h, d).
        k, v: (S, h, d).
        query_lengths, key_lengths: (B,), on the host; sequences of one length should lie together.
        max_seqlen: no sequence of keys is longer.

    Returns:
        The result (Sq, h, d); and, for the backward pass, one group behind another: where attention is fused, each
        query's log of the sum of exponentials (Sq * h,), else the probabilities, in a buffer (Sq * h * max_seqlen,)
        that they need not fill.
    """
    out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), _empty_kept(q, max_seqlen)
    forward = _fused if _is_fused(q) else _explicit
    with _without_autocast(q.device.type):
        for group in _groups(query_lengths, key_lengths, q):
            if group.num_queries:  # none would be a division by zero within PyTorch
                group.queries(out).copy_(forward(group, q, k, v, kept))
    return out, kept


@torch.library.custom_op(versioned("grouped_attention_backward", __name__), mutates_args=())
def grouped_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    kept: Tensor,
    query_lengths: Tensor,
    key_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`grouped_attention`'s result for q, k and v, each of its own shape."""
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    backward = _fused_backward if _is_fused(q) else _explicit_backward
    with _without_autocast(q.device.type):
        for group in _groups(query_lengths, key_lengths, q):
            places = (group.queries(grad_q), group.keys(grad_k), group.keys(grad_v))
            found = backward(group, grad, q, k, v, out, kept) if group.num_queries else (0, 0, 0)
            for place, values in zip(places, found, strict=True):
                place[:] = values
    return grad_q, grad_k, grad_v


def _is_fused(q: Tensor) -> bool:
    """Whether PyTorch has a fused kernel, and it is the faster one (benchmarks/attention_cpu.py)."""
    return _HAS_FUSED and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def _fused(group: "_Group", q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        group.queries(q), group.keys(k), group.keys(v)
    )
    group.logsumexp(kept).copy_(logsumexp)
    return out


def _fused_backward(
    group: "_Group", grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, kept: Tensor
) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        group.queries(grad),
        group.queries(q),
        group.keys(k),
        group.keys(v),
        group.queries(out),
        group.logsumexp(kept),
        dropout_p=0.0,
        is_causal=False,
    )


def _explicit(group: "_Group", q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    dense = (group.queries(q), group.keys(k), group.keys(v))
    query, key, value = (rows.flatten(0, 1).to(kept.dtype) for rows in dense)
    scale = q.shape[-1] ** -0.5
    scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=scale)
    chosen = torch.softmax(scores, dim=-1, out=group.probabilities(kept))
    return (chosen @ value).unflatten(0, (group.images, group.heads))


def _explicit_backward(
    group: "_Group", grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, kept: Tensor
) -> tuple[Tensor, ...]:
    dense = (group.queries(q), group.keys(k), group.keys(v), group.queries(grad))
    query, key, value, grad_out = (rows.flatten(0, 1).to(kept.dtype) for rows in dense)
    chosen, nothing, scale = group.probabilities(kept), kept.new_empty(()), q.shape[-1] ** -0.5
    grad_v = chosen.transpose(1, 2) @ grad_out
    grad_chosen = grad_out @ value.transpose(1, 2)
    grad_scores = (_softmax_backward if _HAS_SOFTMAX_BACKWARD else _plain_softmax_backward)(grad_chosen, chosen)
    grad_q = torch.baddbmm(nothing, grad_scores, key, beta=0, alpha=scale)
    grad_k = torch.baddbmm(nothing, grad_scores.transpose(1, 2), query, beta=0, alpha=scale)
    return tuple(rows.unflatten(0, (group.images, group.heads)) for rows in (grad_q, grad_k, grad_v))


def _softmax_backward(grad: Tensor, chosen: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(grad, chosen, -1, chosen.dtype)


def _plain_softmax_backward(grad: Tensor, chosen: Tensor) -> Tensor:
    """By its definition; rounded once, as the operator rounds."""
    wide = torch.promote_types(chosen.dtype, torch.float32)
    grad, probabilities = grad.to(wide), chosen.to(wide)
    return (probabilities * (grad - (probabilities * grad).sum(dim=-1, keepdim=True))).to(chosen.dtype)


def _empty_kept(q: Tensor, max_seqlen: int | torch.SymInt) -> Tensor:
    """A buffer for what the backward pass needs of each query, of the type in which it is computed."""
    if _is_fused(q):
        return q.new_empty(q.shape[0] * q.shape[1])
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and max_seqlen <= _FLOAT32_CPU_LENGTH
    return q.new_empty(q.shape[0] * q.shape[1] * max_seqlen, dtype=torch.float32 if short else q.dtype)


class _Group(NamedTuple):
    """Consecutive sequences of one length, as a dense batch of (images * heads, tokens, d)."""

    images: int
    heads: int
    num_queries: int
    num_keys: int
    first_query: int
    first_key: int
    first_probability: int

    def queries(self, rows: Tensor) -> Tensor:
        """(images, heads, queries, d), a view."""
        return self._dense(rows, self.first_query, self.num_queries)

    def keys(self, rows: Tensor) -> Tensor:
        """(images, heads, keys, d), a view."""
        return self._dense(rows, self.first_key, self.num_keys)

    def logsumexp(self, buffer: Tensor) -> Tensor:
        """(images, heads, queries) in the buffer."""
        shape = (self.images, self.heads, self.num_queries)
        return buffer.narrow(0, self.heads * self.first_query, math.prod(shape)).view(shape)

    def probabilities(self, buffer: Tensor) -> Tensor:
        """(images * heads, queries, keys) in the buffer."""
        shape = (self.images * self.heads, self.num_queries, self.num_keys)
        return buffer.narrow(0, self.first_probability, math.prod(shape)).view(shape)

    def _dense(self, rows: Tensor, first: int, tokens: int) -> Tensor:
        return rows.narrow(0, first, self.images * tokens).unflatten(0, (self.images, tokens)).transpose(1, 2)


def _groups(query_lengths: Tensor, key_lengths: Tensor, q: Tensor) -> Iterator[_Group]:
    heads = q.shape[1]
    query = key = probability = 0
    for (num_queries, num_keys), same in groupby(zip(query_lengths.tolist(), key_lengths.tolist(), strict=True)):
        scores = heads * num_queries * num_keys
        left = len(list(same))
        most = left if _is_fused(q) else max(1, _GROUP_SCORES // max(1, scores))
        while left:
            images = min(left, most)
            yield _Group(images, heads, num_queries, num_keys, query, key, probability)
            query += images * num_queries
            key += images * num_keys
            probability += images * scores
            left -= images


def _try_fused(row: Tensor) -> None:
    group, kept = _Group(1, 1, 1, 1, 0, 0, 0), row.new_empty(1)
    _fused(group, row, row, row, kept)
    _fused_backward(group, row, row, row, row, row, kept)


_HAS_FUSED = works(_try_fused)
_HAS_SOFTMAX_BACKWARD = works(lambda one: _softmax_backward(one, one))


@grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, max_seqlen: int | torch.SymInt):
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, _empty_kept(q, max_seqlen)


@grouped_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, query_lengths, key_lengths, _ = inputs
    ctx.set_materialize_grads(False)  # nothing depends on what is kept: no zeros for it
    ctx.save_for_backward(q, k, v, *output, query_lengths, key_lengths)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *grouped_attention_backward(grad, *ctx.saved_tensors), None, None, None


grouped_attention.register_autograd(_backward, setup_context=_keep_for_backward)


@register_flop_formula(grouped_attention._opoverload.overloadpacket, get_raw=True)
def _(q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, *_: Any, **__: Any) -> int:
    pairs = int((query_lengths * key_lengths).sum())
    return 2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2])


def _without_autocast(device: str):
    """Autocast would run a softmax of bfloat16 scores in float32, twice the memory traffic for nothing."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
