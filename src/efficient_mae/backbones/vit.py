"""The Vision Transformer encoder, with timm's parameter names.

B images, N patches of an image, V of them visible, D width, S rows of packed tokens.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efficient_mae.backbones.base import SparseBackbone, check_sizes, hide
from efficient_mae.backbones.kernels.attention import attention, packed_attention
from efficient_mae.backbones.kernels.linear import Linear, linear
from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.backbones.patches import PatchEmbed, as_pair, grid_size
from efficient_mae.backbones.positions import sincos_position_embedding
from efficient_mae.backbones.sizes import SIZES
from efficient_mae.errors import InputError

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

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        attn: nn.Module | None = None,
    ):
        """
        Args:
            init_values: with which layer scale begins; None leaves it out.
            drop_path: share of the images for which each branch is skipped in training.
            attn: None stands for self-attention.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn: Any = Attention(dim, num_heads) if attn is None else attn
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls1, self.ls2 = (LayerScale(dim, init_values) if init_values else nn.Identity() for _ in range(2))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, tokens: Sequences | None = None) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), tokens)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Share of the images for which each block is skipped: from 0 in the first to that of the last."""
    return torch.linspace(0, last, depth, device="cpu").tolist()


class VisionTransformer(SparseBackbone):
    """ViT encoder with fixed 2-D sine-cosine positions, class token and final norm.

    Its parameters carry timm's names, so that its state dict loads into timm's VisionTransformer.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: P, in pixels; divides the image.
        in_chans: C.
        embed_dim: D.
        depth: number of blocks.
        num_heads: heads of each block.
        init_values: with which layer scale begins; None leaves it out.
        drop_path_rate: share of the images for which the last block is skipped; grows from 0 in the first block.

    Raises:
        InputError: a number below 1, or the patch size does not divide the image, or the heads the width.
    """

    family = "vit"
    timm_class = timm_vit.VisionTransformer
    ARGUMENTS = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
    OPTIONAL = ("init_values",)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        check_sizes(in_chans=in_chans, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        self.img_size = as_pair(img_size)
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.grid_size = grid_size(self.img_size, patch_size)
        self.strides, self.dims = (patch_size,), (embed_dim,)
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_position_embedding(embed_dim, self.grid_size)[None])
        self.pos_embed: Tensor
        self.init_values, self.drop_path_rate = init_values, drop_path_rate
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, init_values=init_values, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @property
    def timm_name(self) -> str:
        name = next((name for name, size in SIZES.items() if size.embed_dim == self.embed_dim), "base")
        return f"vit_{name}_patch{14 if name == 'huge' else 16}_224"

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
        position = self.pos_embed[0, 1:]
        x = self.patch_embed(images, ids_keep)
        return self._tokens(x + (position if ids_keep is None else position[ids_keep]))

    def forward_masked(
        self, images: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B H W"], mask_token: Float[Tensor, "1 1 D"]
    ) -> Float[Tensor, "B H W D"]:
        self.check_images(images)
        x = hide(self.patch_embed(images), mask, mask_token) + self.pos_embed[0, 1:]
        return self.norm(self.run_blocks(self._tokens(x)))[:, 1:].unflatten(1, self.grid_size)

    def classifier_arguments(self, num_classes: int, pool: str, fc_norm: bool) -> dict[str, Any]:
        return super().classifier_arguments(num_classes, pool, fc_norm) | {"fc_norm": fc_norm}

    def fit_positions(self, weights: dict[str, Tensor], grid_size: tuple[int, int]) -> None:
        fitted = resample_abs_pos_embed(weights["pos_embed"], new_size=list(self.grid_size), old_size=list(grid_size))
        weights["pos_embed"] = fitted

    def _tokens(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B tokens D"]:
        cls_token = (self.cls_token + self.pos_embed[0, 0]).expand(len(patches), 1, -1)
        return torch.cat([cls_token, patches], dim=1)

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
            draws = self.drop_path_rate > 0
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=draws)  # pyright: ignore[reportReturnType]
        return function(*arguments)


def init_weights(module: nn.Module) -> None:
    """MAE's initialisation: Xavier uniform for linear maps (the patch embedding is one), zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
