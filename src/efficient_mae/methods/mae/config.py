"""What a model is made of."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from efficient_mae.backbones.patches import as_pair
from efficient_mae.backbones.sizes import DECODER_HEAD_DIM, parse_name
from efficient_mae.errors import InputError
from efficient_mae.masking import check_schedule, num_visible, p2dist
from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.methods.mae.planner import MaskPlanner
from efficient_mae.methods.mae.settings import MaskSettings
from efficient_mae.ranges import Pixels, PositiveInt


@dataclass(frozen=True, kw_only=True)
class MAESettings(MaskSettings):
    """What can be chosen of a model of a given name; see :func:`create_model`."""

    img_size: Pixels = 224
    """pixels, one number or [height, width]"""
    in_chans: PositiveInt = 3
    """channels that images are converted to: 1 grey, 3 RGB, 4 RGBA"""
    depth: PositiveInt | None = None
    """encoder blocks (null: the model's)"""
    decoder_depth: PositiveInt = 8
    """decoder blocks"""
    decoder_embed_dim: PositiveInt | None = None
    """decoder width (null: the model's)"""
    decoder_num_heads: PositiveInt | None = None
    """decoder heads (null: one for each 32 channels)"""
    norm_pix_loss: bool = True
    """normalise each target patch by its own mean and variance"""


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MAESettings):
    """Everything that a model is made of; what a checkpoint records."""

    img_size: tuple[PositiveInt, PositiveInt] = field()
    patch_size: PositiveInt = field()
    embed_dim: PositiveInt = field()
    depth: PositiveInt = field()
    num_heads: PositiveInt = field()
    decoder_embed_dim: PositiveInt = field()
    decoder_num_heads: PositiveInt = field()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MAEConfig":
        """The config that :meth:`to_dict` wrote.

        Raises:
            KeyError: a value is missing; the first versions had neither `difficulty` nor `schedule`.
            TypeError: there are others.
        """
        if missing := {one.name for one in fields(cls)} - {"difficulty", "schedule"} - values.keys():
            raise KeyError(min(missing))
        return cls(**{**values, "img_size": as_pair(tuple(values["img_size"]))})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them."""
        return asdict(self) | {"img_size": list(self.img_size)}

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def planner(self, part_size: int | None = None) -> MaskPlanner:
        """Makes this model's masks, laid out for parts of so many images; None for all at once."""
        return MaskPlanner(self.grid_size, self.patch_size, self, part_size)


def resolve_model(name: str, settings: MAESettings) -> MAEConfig:
    """What a model of a name is made of.

    Raises:
        InputError: an unknown name, or sizes that don't go together.
    """
    size, patch_size = parse_name(name)
    width = settings.decoder_embed_dim or size.decoder_embed_dim
    chosen = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return MAEConfig(**chosen | {
        "img_size": as_pair(settings.img_size),
        "patch_size": patch_size,
        "embed_dim": size.embed_dim,
        "depth": settings.depth or size.depth,
        "num_heads": size.num_heads,
        "decoder_embed_dim": width,
        "decoder_num_heads": settings.decoder_num_heads or max(1, width // DECODER_HEAD_DIM),
    })  # fmt: skip


def check_objective(config: MAEConfig) -> None:
    """Refuse at once what could only fail later."""
    rows, columns = config.grid_size
    num_visible(rows * columns, config.mask_ratio)
    check_schedule(config.difficulty, config.schedule, config.beta, config.grid_size)
    # No patch is easier than one with eight visible neighbours, judged by all of their points.
    surrounded = torch.zeros(1, 3, 3, dtype=torch.bool, device="cpu")
    surrounded[0, 1, 1] = True
    easiest = float(p2dist(surrounded, config.patch_size, k=9 * 8)[0, 1, 1])
    if config.beta is not None and not config.beta * config.patch_size / BETA_PATCH_SIZE >= easiest:
        raise InputError(
            f"beta={config.beta}: no patch is that easy; take at least "
            f"{easiest * BETA_PATCH_SIZE / config.patch_size:.2f}, or none to reconstruct every masked patch"
        )
