"""CAE (Chen et al. 2022): latents of hidden patches, predicted from those of visible ones, and their visual tokens.

B images, C channels, h x w pixels, V visible and M hidden patches of an image, N tokens, T = B * M, D width, K tokens
of a vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn

from efficient_mae.backbones.kernels.attention import attention
from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.backbones.vit import LAYER_NORM_EPS, Block, Mlp, VisionTransformer, drop_path_rates, init_weights
from efficient_mae.errors import InputError
from efficient_mae.masking import blockwise_mask_from_noise
from efficient_mae.methods.base import check_mask
from efficient_mae.methods.masked import MaskedPlan, MaskedPlanner
from efficient_mae.methods.tokens import TokenConfig, TokenMethod, TokenOutput, TokenSettings, token_errors
from efficient_mae.ranges import NonNegative, PositiveInt, Ratio


@dataclass(frozen=True, kw_only=True)
class CAESettings(TokenSettings):
    """What can be chosen of a CAE of a given name; the defaults are those of the published runs."""

    mask_ratio: Ratio = 0.5
    """share of patches that are hidden, in blocks"""
    regressor_depth: PositiveInt = 4
    """blocks that predict latents of hidden patches"""
    decoder_depth: PositiveInt = 4
    """blocks between these and their tokens"""
    alignment: NonNegative = 2.0
    """weight of the predicted latents' error beside that of the tokens"""


@dataclass(frozen=True, kw_only=True)
class CAEConfig(TokenConfig, CAESettings):
    """Everything that a CAE is made of; what a checkpoint records."""

    method = "cae"
    measured = "cross-entropy + alignment"

    mask_ratio: Ratio = 0.5

    def make_backbone(self) -> VisionTransformer:
        """With layer scale and drop path."""
        return VisionTransformer(**self.backbone, init_values=self.layer_scale, drop_path_rate=self.drop_path)

    def planner(self, unit: int | None = None) -> "CAEPlanner":
        """Makes masks of blocks that hide the same number of patches in every image: 98 of 196."""
        blocks = {"num_masked": self.num_masked, "smallest_block": self.smallest_block, "exact": True}
        return CAEPlanner(partial(blockwise_mask_from_noise, grid_size=self.grid_size, **blocks))

    def tokens(self, plan: "CAEPlan") -> dict[str, float]:
        """Of the encoder, its class token among them, and of the regressor and decoder, which are those predicted."""
        hidden = len(plan.ids_hidden) / len(plan.mask)
        return {"encoder_tokens": 1 + plan.ids_keep.shape[1], "decoder_tokens": hidden, "predicted_patches": hidden}


@dataclass(frozen=True)
class CAEPlan(MaskedPlan):
    """What is hidden in a batch: as many patches of each image.

    Attributes:
        ids_keep: the visible patches of each image, ascending.
    """

    ids_keep: Int64[Tensor, "B V"]

    @property
    def ids_masked(self) -> Int64[Tensor, "B M"]:
        """The hidden patches of each image, ascending."""
        return self.ids_hidden.view(len(self.mask), -1) % self.mask[0].numel()


@dataclass(frozen=True)
class CAEPlanner(MaskedPlanner):
    """Makes plans of masks; it has no weights and no device, and can be pickled."""

    def plan(self, mask: Bool[Tensor, "B H W"]) -> CAEPlan:
        """The plan of given masks.

        Raises:
            InputError: images with different numbers of hidden patches, or with none or all of them.
        """
        plan, visible = super().plan(mask), ~mask.flatten(1)
        counts = visible.sum(dim=1)
        fewest, most = int(counts.min()), int(counts.max())
        if not 0 < fewest == most < visible.shape[1]:
            raise InputError(
                f"mask leaves between {fewest} and {most} patches visible: every image of a batch must keep the same "
                "number, and neither none nor all"
            )
        ids_keep = visible.nonzero()[:, 1].view(len(mask), -1)
        return CAEPlan(plan.mask, plan.ids_hidden, plan.weights, ids_keep)


@dataclass(frozen=True)
class CAEOutput(TokenOutput):
    """What a forward pass returns.

    Attributes:
        errors: cross-entropy of each hidden patch's token, and the weighted mean squared error of its latent.
        latent: predicted, of each hidden patch.
        latent_target: the encoder's own.
    """

    latent: Float[Tensor, "T D"]
    latent_target: Float[Tensor, "T D"]


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others; keys have no bias."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim, bias=False)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "B M D"], keys: Float[Tensor, "B N D"], values: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M D"]:
        pairs = ((self.q, queries), (self.k, keys), (self.v, values))
        q, k, v = (make(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for make, x in pairs)  # (B, h, ., d)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(-2))


class RegressorBlock(nn.Module):
    """Hidden patches ask visible ones, and each other, what they are.

    Values are without positions. What the MLP adds is added to the normalised sum before it, so that nothing passes
    through the block unnormalised.
    """

    def __init__(self, dim: int, num_heads: int, init_values: float, drop_path: float):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v, self.norm2 = (nn.LayerNorm(dim, LAYER_NORM_EPS) for _ in range(4))
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls1, self.ls2 = LayerScale(dim, init_values), LayerScale(dim, init_values)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        hidden: Float[Tensor, "B M D"],
        visible: Float[Tensor, "B V D"],
        place_hidden: Float[Tensor, "B M D"],
        place_visible: Float[Tensor, "B V D"],
    ) -> Float[Tensor, "B M D"]:
        """
        Args:
            hidden: latents of hidden patches, as known so far.
            visible: the encoder's latents of visible patches.
            place_hidden, place_visible: their position embeddings.
        """
        values = torch.cat([visible, hidden], dim=1)
        keys = values + torch.cat([place_visible, place_hidden], dim=1)
        asked = self.cross_attn(self.norm1_q(hidden + place_hidden), self.norm1_k(keys), self.norm1_v(values))
        hidden = self.norm2(hidden + self.drop_path(self.ls1(asked)))
        return hidden + self.drop_path(self.ls2(self.mlp(hidden)))


class CAE(TokenMethod):
    """The encoder sees visible patches alone; what hidden ones hold is worked out behind it.

    Source: Sec. 3 of CAE.
    """

    Settings, Config = CAESettings, CAEConfig
    backbone: VisionTransformer

    def __init__(self, config: CAEConfig):
        super().__init__(config)
        width, heads, scale = config.embed_dim, config.num_heads, config.layer_scale
        first, second = self.backbone.pos_embed.chunk(2, dim=-1)
        self.backbone.pos_embed = torch.cat([second, first], dim=-1)  # the row comes first; in MAE the column does
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        rates = drop_path_rates(config.drop_path, config.regressor_depth)
        self.regressor_blocks = nn.ModuleList(RegressorBlock(width, heads, scale, rate) for rate in rates)
        self.regressor_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        rates = drop_path_rates(config.drop_path, config.decoder_depth)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, init_values=scale, drop_path=rate) for rate in rates)
        self.decoder_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.lm_head = Linear(width, config.vocab_size)
        for module in (self.regressor_blocks, self.decoder_blocks, self.lm_head):
            module.apply(init_weights)
        for parameter in (self.mask_token, self.lm_head.weight):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        images: Float[Tensor, "B C h w"],
        mask: Bool[Tensor, "B H W"] | CAEPlan | None = None,
        generator: torch.Generator | None = None,
    ) -> CAEOutput:
        """Hide patches, encode the visible ones, predict what the hidden ones are.

        Args:
            images: normalised images.
            mask: True = hidden, as many in every image; or a plan made with the batch; None draws random masks.
            generator: source of randomness for the masks.

        Raises:
            InputError: images or mask of a shape that this model does not take, or its tokenizer is gone or another.
        """
        if isinstance(mask, Tensor):
            check_mask(mask, len(images), self.config.grid_size)
            mask = self.config.planner().plan(mask)
        plan = cast(CAEPlan, (mask or self.plan(len(images), generator)).to(images.device))
        visible = self.backbone.forward_features(images, plan.ids_keep)[:, 1:]
        latent, logits = self.predict(visible, plan)
        latent, aim = latent.flatten(0, 1), self.latent_targets(images, plan).flatten(0, 1)
        target = self.tokens(images, plan)
        alignment = (latent.to(aim.dtype) - aim).square().mean(dim=1)
        errors = token_errors(logits, target) + self.config.alignment * alignment
        return CAEOutput((plan.weights * errors).sum(), errors, plan, logits, target, latent, aim)

    @torch.no_grad()
    def latent_targets(self, images: Float[Tensor, "B C h w"], plan: CAEPlan) -> Float[Tensor, "B M D"]:
        """What the encoder makes of the hidden patches where it sees them alone."""
        return self.backbone.forward_features(images, plan.ids_masked)[:, 1:]

    def predict(
        self, visible: Float[Tensor, "B V D"], plan: CAEPlan
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "T K"]]:
        """Latents of hidden patches from the encoder's of visible ones, and their tokens' logits from these alone."""
        place = self.backbone.pos_embed[0, 1:]
        place_hidden, place_visible = place[plan.ids_masked], place[plan.ids_keep]
        # Copies: PyTorch's counter of operations stumbles over a view of a parameter where no gradients are kept.
        hidden = self.mask_token.repeat(*plan.ids_masked.shape, 1)
        for block in self.regressor_blocks:
            hidden = self.backbone.run_block(block, hidden, visible, place_hidden, place_visible)
        latent = self.regressor_norm(hidden)
        hidden = latent + place_hidden
        for block in self.decoder_blocks:
            hidden = self.backbone.run_block(block, hidden)
        return latent, self.lm_head(self.decoder_norm(hidden)).flatten(0, 1)
