"""SimMIM (Xie et al. 2022): raw pixels of hidden units, from a mask token in their place, by a head of one layer.

B images, C channels, h x w pixels, H x W patches, T hidden patches of the batch, rows x columns places of the
encoder's last features, D their width.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones import BACKBONES, Backbone, Beit, VisionTransformer
from efficient_mae.backbones.patches import pixel_mask
from efficient_mae.backbones.sizes import SWIN_PATCH_SIZE, family_of, parse_name
from efficient_mae.errors import InputError
from efficient_mae.masking import num_visible, unit_mask_from_noise
from efficient_mae.methods.base import MethodConfig, MethodSettings, Output, PublishedCost
from efficient_mae.methods.masked import MaskedMethod, MaskedPlan, MaskedPlanner
from efficient_mae.ranges import Pixels, Positive, PositiveInt, Ratio

# With which a ViT's layer scale begins, as in the authors' settings.
LAYER_SCALE = 0.1

# Table 3, whose SimMIM models take images of 192 pixels. Released: Swin-B with windows of 6, Swin-L of 12.
_PAPER = (("swin_base_window6", 11.3), ("swin_large_window12", 26.0), ("swinv2_huge_window12", 86.2))


@dataclass(frozen=True, kw_only=True)
class SimMIMSettings(MethodSettings):
    """What can be chosen of a SimMIM of a given name."""

    img_size: Pixels = 192
    """pixels, one number or [height, width]"""
    depth: PositiveInt | tuple[PositiveInt, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """encoder blocks, of a Swin one number for each stage, as 2,2,18,2 (null: the model's)"""
    mask_ratio: Ratio = 0.6
    """share of units that are hidden"""
    mask_unit: PositiveInt = 32
    """side of the squares that are hidden as a whole, in pixels"""
    drop_path: Annotated[float, Ge(0), Le(0.99)] = 0.0
    """share of the images for which the last block is skipped; grows from 0 in the first block"""


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(MethodConfig, SimMIMSettings):
    """Everything that a SimMIM is made of; what a checkpoint records.

    Attributes:
        family: of a ViT BEiT's: relative positions, layer scale.
        window_size: of a Swin, in places; None of a ViT.
        mlp_ratio: of a Swin, width of a block's MLP, times that of the block.
    """

    method = "simmim"
    measured = "mean absolute error"
    families = ("swin", "swinv2", "vit")

    family: str = field()
    img_size: tuple[PositiveInt, PositiveInt] = field()
    depth: PositiveInt | tuple[PositiveInt, ...] = field()  # pyright: ignore[reportIncompatibleVariableOverride]
    num_heads: PositiveInt | tuple[PositiveInt, ...] = field()  # pyright: ignore[reportIncompatibleVariableOverride]
    window_size: PositiveInt | None = field()
    mlp_ratio: Positive = 4.0

    @classmethod
    def resolve(cls, name: str, settings: MethodSettings, **derived: Any) -> Any:
        """As of any method; of a Swin its windows, and the heads of the stages that it has."""
        size, number = parse_name(name, cls.method, cls.families)
        family, depth = family_of(name), cast(SimMIMSettings, settings).depth or size.depth
        derived |= {"family": Beit.family if family == "vit" else family, "window_size": None}
        if isinstance(depth, tuple) != isinstance(size.depth, tuple):
            wanted = "one number" if family == "vit" else "one number for each stage, as 2,2,18,2"
            raise InputError(f"depth={depth}: of {name} it must be {wanted}")
        if isinstance(depth, tuple) and isinstance(size.num_heads, tuple):
            derived |= {
                "patch_size": SWIN_PATCH_SIZE,
                "window_size": number,
                "num_heads": size.num_heads[: len(depth)],
            }
        return super().resolve(name, settings, **derived)

    @property
    def backbone(self) -> dict[str, Any]:
        if self.family != Beit.family:
            return super().backbone
        return {name: getattr(self, name) for name in VisionTransformer.ARGUMENTS} | {"init_values": LAYER_SCALE}

    def make_backbone(self) -> Backbone:
        return BACKBONES[self.family](**self.backbone, drop_path_rate=self.drop_path)

    @property
    def draws(self) -> bool:
        return self.drop_path > 0

    def planner(self, unit: int | None = None) -> MaskedPlanner:
        """Makes this model's masks of units."""
        units = {"unit": self.mask_unit // self.patch_size, "mask_ratio": self.mask_ratio}
        return MaskedPlanner(partial(unit_mask_from_noise, grid_size=self.grid_size, **units))

    @classmethod
    def published(cls) -> tuple[PublishedCost, ...]:
        """Table 3."""
        return tuple(
            PublishedCost(table="3", model=f"simmim_{name}", settings={}, name="SimMIM", mask_ratio=0.6, gmacs=gmacs)
            for name, gmacs in _PAPER
        )


@dataclass(frozen=True)
class SimMIMOutput(Output):
    """What a forward pass returns.

    Attributes:
        weighted_sum: of the hidden patches' errors.
        errors: mean absolute error of each hidden patch.
        plan: what was hidden.
        reconstruction: of whole images, normalised as they are; what is hidden alone was learned.
    """

    plan: MaskedPlan
    reconstruction: Float[Tensor, "B C h w"]


class SimMIM(MaskedMethod):
    """All places go through the encoder; a 1 x 1 convolution makes of each the pixels that it stands for.

    Source: Sec. 3 of SimMIM.
    """

    Settings, Config = SimMIMSettings, SimMIMConfig
    config: SimMIMConfig

    def __init__(self, config: SimMIMConfig):
        _check_units(config)
        super().__init__(config)
        stride = self.backbone.strides[-1]
        # Named as in the authors' checkpoints and in transformers.
        self.decoder = nn.Sequential(
            nn.Conv2d(self.backbone.dims[-1], stride**2 * config.in_chans, kernel_size=1), nn.PixelShuffle(stride)
        )

    def learn(
        self, images: Float[Tensor, "B C h w"], latent: Float[Tensor, "B rows columns D"], plan: MaskedPlan
    ) -> SimMIMOutput:
        reconstruction = self.decoder(latent.permute(0, 3, 1, 2)).to(images.dtype)
        difference = (images - reconstruction).abs().mean(dim=1)  # (B, h, w)
        errors = F.avg_pool2d(difference, self.config.patch_size).flatten().index_select(0, plan.ids_hidden)
        return SimMIMOutput((plan.weights * errors).sum(), errors, plan, reconstruction)

    def paint(self, images: Float[Tensor, "B C h w"], out: SimMIMOutput) -> Float[Tensor, "B C h w"]:
        """The images with their hidden patches filled in."""
        return torch.where(pixel_mask(out.mask, self.config.patch_size), out.reconstruction, images)


def _check_units(config: SimMIMConfig) -> None:
    """Refuse units that do not fill the image, or of which none or all would be hidden."""
    (height, width), unit, patch = config.img_size, config.mask_unit, config.patch_size
    if unit % patch:
        raise InputError(f"mask_unit={unit}: must be a multiple of the patches' {patch} pixels")
    if height % unit or width % unit:
        raise InputError(
            f"mask_unit={unit}: does not divide images of {height}x{width}; take another, or sides that are multiples"
        )
    try:
        num_visible(height // unit * (width // unit), config.mask_ratio)
    except InputError as error:
        raise InputError(str(error).replace("patches", "units")) from None
