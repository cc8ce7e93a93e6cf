"""MaskFeat (Wei et al. 2022): hidden patches' histograms of gradients, from a mask token in their place.

B images, C channels, h x w pixels, H x W patches of P x P pixels, T hidden patches, X numbers of each.
"""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones import Backbone, VisionTransformer
from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.backbones.patches import patch_view
from efficient_mae.errors import InputError
from efficient_mae.masking import blockwise_mask_from_noise, check_blocks, num_hidden
from efficient_mae.masking.loss import weighted_error_sum
from efficient_mae.methods.base import MethodConfig, MethodSettings, Output, PublishedCost
from efficient_mae.methods.hog import BINS, draw_hog, hog_targets
from efficient_mae.methods.masked import MaskedMethod, MaskedPlan, MaskedPlanner, tokens_of
from efficient_mae.ranges import PositiveInt, Ratio


@dataclass(frozen=True, kw_only=True)
class MaskFeatSettings(MethodSettings):
    """What can be chosen of a MaskFeat of a given name; the defaults are its published settings."""

    mask_ratio: Ratio = 0.4
    """share of patches that are hidden, in blocks; at most"""
    smallest_block: PositiveInt | None = None
    """patches of a block, at least (null: a fifth of those that are hidden)"""
    cell_size: PositiveInt = 8
    """side, in pixels, of the cells whose gradients are counted; divides the patch size"""


@dataclass(frozen=True, kw_only=True)
class MaskFeatConfig(MethodConfig, MaskFeatSettings):
    """Everything that a MaskFeat is made of; what a checkpoint records."""

    method = "maskfeat"
    painted = "Reconstruction: the predicted histograms of gradients, as lines along the edges that they stand for."

    def make_backbone(self) -> Backbone:
        """The encoder, whose positions are learned, from the sine-cosine table on."""
        encoder = VisionTransformer(**self.backbone)
        table = encoder.pos_embed
        del encoder.pos_embed
        encoder.pos_embed = nn.Parameter(table)
        return encoder

    def planner(self, unit: int | None = None) -> MaskedPlanner:
        """Hides blocks of patches.

        Raises:
            InputError: a ratio or blocks that do not fit the grid.
        """
        rows, columns = self.grid_size
        hidden = num_hidden(rows * columns, self.mask_ratio)
        blocks = {"num_masked": hidden, "smallest_block": self.smallest_block or max(1, hidden // 5)}
        check_blocks(self.grid_size, **blocks)
        return MaskedPlanner(partial(blockwise_mask_from_noise, grid_size=self.grid_size, **blocks))

    def tokens(self, plan: MaskedPlan) -> dict[str, float]:
        return tokens_of(plan)

    @property
    def histograms(self) -> int:
        """X: numbers of a patch that the head predicts."""
        return self.in_chans * BINS * (self.patch_size // self.cell_size) ** 2

    @classmethod
    def published(cls) -> tuple[PublishedCost, ...]:
        """Table 3."""
        return tuple(
            PublishedCost("3", f"maskfeat_vit_{size}_patch16", {}, "MaskFeat", 0.4, gmacs)
            for size, gmacs in (("base", 17.6), ("large", 61.6))
        )


@dataclass(frozen=True)
class MaskFeatOutput(Output):
    """What a forward pass returns.

    Attributes:
        prediction: histograms of the hidden patches, in the order of ``mask.nonzero()``.
        target: the true ones.
    """

    prediction: Float[Tensor, "T X"]
    target: Float[Tensor, "T X"]


class MaskFeat(MaskedMethod):
    """A ViT that sees all patches, hidden ones as a mask token, and a linear head on its last tokens.

    Source: Secs. 2 and 3 of MaskFeat.
    """

    Settings, Config = MaskFeatSettings, MaskFeatConfig
    config: MaskFeatConfig

    def __init__(self, config: MaskFeatConfig):
        super().__init__(config)
        config.planner()  # refuses what does not fit the grid
        patch, cell = config.patch_size, config.cell_size
        if patch % cell:
            fit = ", ".join(str(side) for side in range(1, patch + 1) if patch % side == 0)
            raise InputError(f"cell_size={cell}: does not divide the patches' {patch} pixels; take one of {fit}")
        self.hog_pred = Linear(config.embed_dim, config.histograms)
        nn.init.trunc_normal_(self.hog_pred.weight, std=0.02)
        nn.init.zeros_(self.hog_pred.bias)

    def learn(
        self, images: Float[Tensor, "B C h w"], latent: Float[Tensor, "B H W D"], plan: MaskedPlan
    ) -> MaskFeatOutput:
        """The squared error of each hidden patch's histograms, mean over their numbers."""
        prediction = self.hog_pred(latent.flatten(0, 2).index_select(0, plan.ids_hidden))
        target = hog_targets(images, plan.ids_hidden, self.config.patch_size, self.config.cell_size)
        total, errors = weighted_error_sum(prediction, target, plan.weights)
        return MaskFeatOutput(total, errors, plan, prediction, target)

    def paint(self, images: Float[Tensor, "B C h w"], out: MaskFeatOutput) -> Float[Tensor, "B C h w"]:
        """The images, in hidden patches the predicted histograms as lines, from an image's darkest to its brightest.

        A channel's histograms are drawn in that channel: where all agree, lines are white.
        """
        given = self.config
        drawn = draw_hog(out.prediction, given.in_chans, given.patch_size, given.cell_size)
        dark, bright = (level[out.plan.images][:, None, None, None] for level in images.flatten(1).aminmax(dim=1))
        painted = images.clone()
        patch_view(painted, given.patch_size)[out.mask] = dark + (bright - dark) * drawn  # writes through the view
        return painted
