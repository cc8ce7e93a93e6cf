"""A block of MAE's decoder, on packed sequences.

B images, V visible patches of an image, N patches of an image, S packed tokens, T predicted patches, D width.
"""

import torch
from torch import Tensor

from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.backbones.vit import Block
from efficient_mae.methods.mae.layout import DecoderLayout
from efficient_mae.methods.mae.packing import spread


class DecoderBlock(Block):
    """A transformer block that computes once what images share, and only what is asked of it."""

    entries = ("forward_shared", "forward_queries")

    def forward_shared(self, encoded: Tensor, hidden: Tensor, layout: DecoderLayout) -> Tensor:
        """The block's output (S, D) where a hidden patch is the same token in every image, as in the first block.

        Args:
            encoded: (B * (1 + V), D), tokens of each image.
            hidden: (N, D), the token of each patch where it is hidden: its query, key and value are computed once.
            layout: where they go.
        """
        tokens = torch.cat([encoded, hidden])
        qkv = self.attn.qkv(self.norm1(tokens))
        x = spread(tokens, layout) + self.attn.mix(spread(qkv, layout), layout.tokens)
        return x + self.mlp(self.norm2(x))

    def forward_queries(self, x: Tensor, rows: Tensor, queries: Sequences, tokens: Sequences) -> Tensor:
        """The block's output (T, D) at the packed tokens `rows` alone: all that the last block need compute."""
        y = x.index_select(0, rows) + self.attn.forward_queries(self.norm1(x), rows, queries, tokens)
        return y + self.mlp(self.norm2(y))
