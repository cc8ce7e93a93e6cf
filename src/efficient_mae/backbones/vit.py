"""The Vision Transformer encoder, with timm's parameter names.

B images, N patches of an image, V of them visible, D width, S rows of packed tokens.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efficient_mae.backbones.kernels.attention import attention, packed_attention
from efficient_mae.backbones.kernels.linear import Linear, linear
from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.backbones.patches import PatchEmbed, as_pair, grid_size
from efficient_mae.backbones.positions import sincos_position_embedding
from efficient_mae.errors import InputError
from efficient_mae.ranges import PositiveInt, check_range

# MAE's and timm's epsilon; transformers' ViTMAE defaults to 1e-12.
LAYER_NORM_EPS = 1e-6


def check_heads(num_heads: int, dim: int) -> None:
    """Raise InputError unless the heads divide the width."""
    if dim % num_heads:
        raise InputError(f"num_heads={num_heads} does not divide the width {dim}")


class Attention(nn.Module):
    """Multi-head self-attention over dense (B, N, D) or packed (S, D) tokens."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(num_heads, dim)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Sequences | None = None) -> Tensor:
        return self.mix(self.qkv(x), tokens)

    def mix(self, qkv: Tensor, tokens: Sequences | None = None) -> Tensor:
        """Attention of tokens whose queries, keys and values (..., 3 * D) are known."""
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        if tokens is None:
            # Views, whose gradients come together in one copy.
            q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # (B, h, N, d)
            out = attention(q, k, v).transpose(1, 2)
        else:
            q, k, v = qkv.unbind(1)  # (S, h, d)
            out = packed_attention(q, k, v, tokens, tokens)
        return self.proj(out.flatten(-2))

    def forward_queries(self, x: Tensor, rows: Tensor, queries: Sequences, tokens: Sequences) -> Tensor:
        """Attention of the packed tokens `rows` (T,) to all tokens; nobody else's queries are computed."""
        dim = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = linear(x.index_select(0, rows), weight[:dim], bias[:dim])
        kv = linear(x, weight[dim:], bias[dim:])
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        out = packed_attention(q.unflatten(-1, (self.num_heads, -1)), k, v, queries, tokens)
        return self.proj(out.flatten(-2))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        attn: in place of self-attention, for blocks that are entered otherwise.

    Attributes:
        entries: methods by which it is entered beside `__call__`, passing by its hooks.
    """

    entries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, attn: nn.Module | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn: Any = Attention(dim, num_heads) if attn is None else attn
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, tokens: Sequences | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), tokens)
        return x + self.mlp(self.norm2(x))


# What :class:`VisionTransformer` is made of, by the names that timm has for it too.
ARGUMENTS = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")


class VisionTransformer(nn.Module):
    """ViT encoder with fixed 2-D sine-cosine positions, class token and final norm.

    Its parameters carry timm's names, so that its state dict loads into timm's VisionTransformer.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: P, in pixels; divides the image.
        in_chans: C.
        embed_dim: D.
        depth: number of blocks.
        num_heads: heads of each block.

    Raises:
        InputError: a number below 1, or the patch size does not divide the image, or the heads the width.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ):
        super().__init__()
        sizes = {"in_chans": in_chans, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        for name, size in sizes.items():
            check_range(name, size, PositiveInt)
        self.img_size = as_pair(img_size)
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.grid_size = grid_size(self.img_size, patch_size)
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_position_embedding(embed_dim, self.grid_size)[None])
        self.pos_embed: Tensor
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def check_images(self, images: Tensor) -> None:
        """Raise InputError unless the images have this model's size and channels."""
        expected = (self.in_chans, *self.img_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            given = " x ".join(map(str, images.shape))
            raise InputError(f"images are {given}; this model takes B x {' x '.join(map(str, expected))}")

    def forward_features(
        self, images: Float[Tensor, "B C h w"], ids_keep: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B tokens D"]:
        """Normalised features of the class token and of the patches `ids_keep` (None: of all, as timm gives)."""
        return self.norm(self.run_blocks(self.embed(images, ids_keep)))

    # Loosely typed: the autoencoder below returns more than features.
    forward: Callable[..., Any] = forward_features

    def forward_every(
        self, images: Float[Tensor, "B C h w"], ids_keep: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "depth B tokens D"]:
        """The same features after every block, all normalised by the final norm, as timm gives intermediate ones."""
        return self.norm(self.run_blocks(self.embed(images, ids_keep), every=True))

    def embed(
        self, images: Float[Tensor, "B C h w"], ids_keep: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B tokens D"]:
        """The class token and the patches, each with its position: what the blocks begin with."""
        self.check_images(images)
        x = self.patch_embed(images, ids_keep)
        position = self.pos_embed[0]
        x = x + (position[1:] if ids_keep is None else position[1:][ids_keep])
        cls_token = (self.cls_token + position[0]).expand(len(x), 1, -1)
        return torch.cat([cls_token, x], dim=1)

    def run_blocks(self, x: Float[Tensor, "B tokens D"], every: bool = False) -> Float[Tensor, "*depth B tokens D"]:
        """One block after another: the last one's output, or every one's."""
        outputs = []
        for block in self.blocks:
            x = self.run_block(block, x)
            outputs += [x] if every else []
        return torch.stack(outputs) if every else x

    def run_block(self, function: Callable[..., Tensor], *arguments) -> Tensor:
        """Call a block, recomputing it in the backward pass if so set."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]
        return function(*arguments)


def init_weights(module: nn.Module) -> None:
    """MAE's initialisation: Xavier uniform for linear maps (the patch embedding is one), zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
