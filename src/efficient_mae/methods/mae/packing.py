"""From tokens that images share to the decoder's packed sequences.

B images, N patches of an image, V of them visible, T predicted patches of the batch, S packed tokens, D width.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficient_mae.methods.mae.layout import CrossLayout, DecoderLayout


def spread(tokens: Float[Tensor, "rows D"], layout: DecoderLayout) -> Float[Tensor, "S D"]:
    """The packed sequences of tokens of which the hidden patches' are the same for all images.

    Args:
        tokens: the B * (1 + V) encoded tokens of the images, then N of hidden patches, one a position.
        layout: where they go.
    """
    rows = layout.rows_predict.index_select(0, layout.order_predict)
    copies = tokens.new_empty(()).expand(layout.num_images, len(tokens) - len(layout.rows_encoded))
    return _Spread.apply(tokens, layout.sources, layout.rows_encoded, rows, layout.ids_predict, copies)


def spread_hidden(hidden: Float[Tensor, "N D"], layout: CrossLayout) -> Float[Tensor, "T D"]:
    """The packed sequences of predicted patches alone.

    Args:
        hidden: the token of each patch where it is hidden, which is the same for all images.
        layout: where they go.
    """
    copies = hidden.new_empty(()).expand(layout.num_images, len(hidden))
    nobody = layout.sources[:0]
    return _Spread.apply(hidden, layout.sources, nobody, layout.order_predict, layout.ids_predict, copies)


class _Spread(torch.autograd.Function):
    """Copies rows, some of them many times.

    Its gradient adds those copies up image by image: PyTorch's own for a repeated index adds in whatever order a GPU
    comes to it, and in bfloat16 loses what is added last.
    """

    @staticmethod
    def forward(
        tokens: Tensor,
        sources: Int64[Tensor, " S"],
        rows_encoded: Int64[Tensor, " encoded"],
        rows_hidden: Int64[Tensor, " T"],
        ids_hidden: Int64[Tensor, " T"],
        copies: Float[Tensor, "B N"],
    ) -> Tensor:
        # Not filled in place: PyTorch 2.11 compiles a function that does so to one without a gradient.
        return tokens.index_select(0, sources)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # The copies' numbers as a tensor's shape: PyTorch 2.11's Dynamo loses a number where two of them are equal.
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        rows_encoded, rows_hidden, ids_hidden, copies = ctx.saved_tensors
        table = grad.new_zeros(copies.numel(), grad.shape[1])
        table.index_copy_(0, ids_hidden, grad.index_select(0, rows_hidden))
        hidden = table.view(*copies.shape, -1).sum(dim=0)
        return torch.cat([grad.index_select(0, rows_encoded), hidden]), None, None, None, None, None
