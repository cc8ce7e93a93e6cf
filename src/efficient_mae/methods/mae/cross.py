"""A decoder beyond the paper's: predicted patches attend to the encoder's tokens alone, not to each other.

So nothing is computed at visible patches, and every decoder block can look at other features: its own weighted sum of
the outputs of all encoder blocks.

B images, N patches of an image, T predicted patches, K encoder blocks, J decoder blocks, D and E the encoder's and
the decoder's widths, S encoded tokens of the batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones.kernels.attention import packed_attention
from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.backbones.vit import Block, check_heads
from efficient_mae.methods.mae.layout import CrossLayout
from efficient_mae.methods.mae.packing import spread_hidden


class BlockFeatures(nn.Module):
    """The features of each decoder block: a learned weighted sum of the encoder blocks' outputs, at first their mean.

    Args:
        decoder_depth: J.
        depth: K.
    """

    def __init__(self, decoder_depth: int, depth: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((decoder_depth, depth), 1 / depth))

    def forward(self, outputs: Float[Tensor, "K B encoded D"]) -> Float[Tensor, "B J encoded D"]:
        return (self.weight @ outputs.flatten(1)).view(-1, *outputs.shape[1:]).transpose(0, 1)


class CrossAttention(nn.Module):
    """Multi-head attention of packed tokens E wide to packed features D wide."""

    def __init__(self, dim: int, num_heads: int, feature_dim: int):
        super().__init__()
        check_heads(num_heads, dim)
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(feature_dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def mix(self, q: Float[Tensor, "T E"], features: Float[Tensor, "S D"], layout: CrossLayout) -> Tensor:
        """Attention of tokens whose queries are known."""
        k, v = self.kv(features).unflatten(-1, (2, self.num_heads, -1)).unbind(1)  # (S, h, d)
        q = q.unflatten(-1, (self.num_heads, -1))
        return self.proj(packed_attention(q, k, v, layout.tokens, layout.encoded).flatten(-2))


class CrossBlock(Block):
    """A pre-norm block of cross-attention and MLP, on packed sequences."""

    entries = ("forward_shared",)
    attn: CrossAttention

    def __init__(self, dim: int, num_heads: int, feature_dim: int):
        super().__init__(dim, num_heads, attn=CrossAttention(dim, num_heads, feature_dim))

    def forward(self, x: Tensor, features: Tensor, layout: CrossLayout) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x + self.attn.mix(self.attn.q(self.norm1(x)), features, layout)
        return x + self.mlp(self.norm2(x))

    def forward_shared(self, hidden: Tensor, features: Tensor, layout: CrossLayout) -> Tensor:
        """The block's output (T, E) where a hidden patch is the same token in every image, as in the first block.

        Args:
            hidden: (N, E), the token of each patch where it is hidden: its query is computed once.
            features: (S, D), of the images' encoded tokens, in the order of `layout`.
            layout: where they go.
        """
        q = spread_hidden(self.attn.q(self.norm1(hidden)), layout)
        x = spread_hidden(hidden, layout) + self.attn.mix(q, features, layout)
        return x + self.mlp(self.norm2(x))
