"""What a model is made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.backbones.sizes import DECODER_HEAD_DIM, parse_name
from efficient_mae.errors import InputError
from efficient_mae.masking import MaskSettings, check_schedule, check_targets, difficulty, num_visible
from efficient_mae.masking.targets import BETA_PATCH_SIZE, check_weights, flatten_weights, select_targets
from efficient_mae.methods.base import MethodConfig, MethodSettings, PublishedCost
from efficient_mae.methods.mae.costs import PUBLISHED, cross_stack_macs, stack_macs
from efficient_mae.methods.mae.layout import DECODERS, MaskLayout
from efficient_mae.methods.mae.planner import MaskPlanner
from efficient_mae.ranges import PositiveInt

# MAE's own mask ratio, which savings are measured against, and those at which Efficient MAE is timed beside it.
MAE_MASK_RATIO, EFFICIENT_RATIOS = 0.75, (0.85, 0.90, 0.95)
# Patches of a part times the decoder's width, at least: 16 and 256 images of 14 x 14 patches at width 512. Of smaller
# parts the matrix products are too small for a CPU, and the launches too many for a GPU's host.
_PART_NUMBERS = {"cpu": 16 * 196 * 512, "cuda": 256 * 196 * 512}


@dataclass(frozen=True, kw_only=True)
class MAESettings(MethodSettings, MaskSettings):
    """What can be chosen of a model of a given name; see :func:`efficient_mae.create_model`."""

    decoder: str = "self"
    """what predicted patches attend to: self, each other and the visible ones, as in the paper; or cross, the visible
    ones alone, in weighted sums of all encoder blocks' outputs"""
    decoder_depth: PositiveInt = 8
    """decoder blocks"""
    decoder_embed_dim: PositiveInt | None = None
    """decoder width (null: the model's)"""
    decoder_num_heads: PositiveInt | None = None
    """decoder heads (null: one for each 32 channels)"""
    norm_pix_loss: bool = True
    """normalise each target patch by its own mean and variance"""


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MethodConfig, MAESettings):
    """Everything that a model is made of; what a checkpoint records."""

    method = "mae"
    added = frozenset({"decoder", "difficulty", "prediction_ratio", "schedule", "shuffle", "targets"})

    decoder_embed_dim: PositiveInt = field()
    decoder_num_heads: PositiveInt = field()

    @classmethod
    def resolve(cls, name: str, settings: MethodSettings, **derived: Any) -> Any:
        """As of any method; the decoder's width and heads too."""
        size, _ = parse_name(name, name.partition("_")[0])
        given = cast(MAESettings, settings)
        width = given.decoder_embed_dim or size.decoder_embed_dim
        most = max(1, width // DECODER_HEAD_DIM)
        heads = given.decoder_num_heads or max(heads for heads in _divisors(width) if heads <= most)
        return super().resolve(name, settings, decoder_embed_dim=width, decoder_num_heads=heads, **derived)

    def unit(self, device: torch.device) -> int:
        """Images that the decoder takes at a time on a device."""
        rows, columns = self.grid_size
        return math.ceil(_PART_NUMBERS[device.type] / (rows * columns * self.decoder_embed_dim))

    def variants(self) -> Mapping[str, "MAEConfig"]:
        """MAE's and Efficient MAE's masks for one and the same model; then the other decoder's."""
        mae = self.baseline()
        compared = {f"MAE {MAE_MASK_RATIO:.2f}": mae, "MAE 0.85": replace(mae, mask_ratio=0.85)}
        for ratio in EFFICIENT_RATIOS:
            compared[f"Efficient MAE {ratio:.2f}"] = replace(self, mask_ratio=ratio, decoder="self")
        return compared | {"Efficient MAE cross 0.85": replace(self, mask_ratio=0.85, decoder="cross")}

    def baseline(self) -> "MAEConfig":
        """The same model trained as plain MAE: mask ratio 0.75, every masked patch predicted, all weighted alike."""
        return replace(self.with_every_target(), mask_ratio=MAE_MASK_RATIO, gamma=0.0, decoder="self")

    def tokens(self, plan: MaskLayout) -> dict[str, float]:
        """Of the encoder (its class token among them) and of the decoder, and the patches that this predicts."""
        images = len(plan.mask)
        return {
            "encoder_tokens": 1 + plan.ids_keep.shape[1],
            "decoder_tokens": sum(int(part.tokens.lengths.sum()) for part in plan.parts) / images,
            "predicted_patches": len(plan.ids_predict) / images,
        }

    def paper_gmacs(self, images: int = 256, seed: int = 0) -> float:
        """Every patch is embedded, and every token goes through all of the decoder and its head.

        Source: the conventions of docs/readings.md, which reproduce Tables 1, 3 and 4; of a cross decoder in kind.
        """
        patches = self.grid_size[0] * self.grid_size[1]
        layout = self.planner()(torch.rand(images, patches, generator=torch.Generator().manual_seed(seed)))
        encoded = 1 + layout.ids_keep.shape[1]
        decoded = layout.parts[0].tokens.lengths.double()
        width, decoder_width = self.embed_dim, self.decoder_embed_dim
        pixels = self.in_chans * self.patch_size**2
        encoder = patches * pixels * width + stack_macs(self.depth, width, torch.tensor([encoded]).double())
        if self.decoder == "cross":
            summed = self.decoder_depth * self.depth * encoded * width
            decoder = summed + cross_stack_macs(self.decoder_depth, decoder_width, width, decoded, encoded)
        else:
            decoder = encoded * width * decoder_width + stack_macs(self.decoder_depth, decoder_width, decoded)
        return (encoder + decoder + float(decoded.mean()) * decoder_width * pixels) / 1e9

    @classmethod
    def published(cls) -> tuple[PublishedCost, ...]:
        """Tables 1, 3 and 4."""
        return PUBLISHED

    def planner(self, unit: int | None = None) -> MaskPlanner:
        """Makes this model's masks, laid out for parts of so many images; None for all at once."""
        return MaskPlanner(self.grid_size, self.patch_size, self, unit, self.decoder)


def _divisors(number: int) -> list[int]:
    """All numbers that divide it."""
    return [one for one in range(1, number + 1) if number % one == 0]


def check_objective(config: MAEConfig) -> None:
    """Refuse at once what could only fail later, or never learn anything."""
    rows, columns = config.grid_size
    hidden = rows * columns - num_visible(rows * columns, config.mask_ratio)
    check_targets(config.targets, config.prediction_ratio, config.beta, config.schedule, hidden, config.shuffle)
    if config.decoder not in DECODERS:
        raise InputError(f"decoder={config.decoder!r}: must be one of {', '.join(DECODERS)}")
    check_schedule(config.difficulty, config.schedule, config.beta, config.grid_size)
    if config.norm_pix_loss and config.patch_size**2 * config.in_chans == 1:
        raise InputError("norm_pix_loss=True: a patch of a single number has no variance; take norm_pix_loss=False")
    if config.decoder_embed_dim % config.decoder_num_heads:
        fitting = ", ".join(map(str, _divisors(config.decoder_embed_dim)))
        raise InputError(
            f"decoder_num_heads={config.decoder_num_heads}: does not divide decoder_embed_dim="
            f"{config.decoder_embed_dim}; take one of {fitting}"
        )
    if config.beta is None and not config.gamma:
        return
    measured, masks = _near_difficulties(config)
    check_weights(config.gamma, flatten_weights(measured, config.gamma))
    if config.beta is not None and not select_targets(measured, config.patch_size, config.beta, masks).any():
        easiest = float(measured[masks].min()) * BETA_PATCH_SIZE / config.patch_size
        raise InputError(
            f"beta={config.beta}: no patch is that easy; take at least {math.ceil(easiest * 100) / 100:.2f}, "
            "or none to reconstruct every masked patch"
        )


def _near_difficulties(config: MAEConfig) -> tuple[Float[Tensor, "M H W"], Bool[Tensor, "M H W"]]:
    """All masks of 3 x 3 neighbouring patches, or as many as there are, with their P2Dist: no other mask is easier.

    No point of a patch farther off is nearer to any pixel than those of a visible neighbour.
    """
    rows, columns = (min(3, side) for side in config.grid_size)
    cells = torch.arange(rows * columns, device="cpu")
    masks = torch.arange(1, 2 ** len(cells) - 1, device="cpu")[:, None] >> cells & 1 == 1
    patches = config.grid_size[0] * config.grid_size[1]
    visible = num_visible(patches, config.mask_ratio)
    masked = masks.sum(dim=1)
    masks = masks[(masked <= patches - visible) & (len(cells) - masked <= visible)].view(-1, rows, columns)
    return difficulty(masks, config.patch_size, config.difficulty, config.k), masks
