"""What a model is made of."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from efficient_mae.errors import InputError
from efficient_mae.masking import check_schedule, num_visible, p2dist
from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.models.patches import as_pair
from efficient_mae.ranges import NonNegative, Positive, PositiveInt, Ratio, Settings


@dataclass(frozen=True)
class MAEConfig(Settings):
    """Everything that a model is made of; what a checkpoint records. See :func:`create_model`."""

    img_size: tuple[PositiveInt, PositiveInt]
    patch_size: PositiveInt
    in_chans: PositiveInt
    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    decoder_embed_dim: PositiveInt
    decoder_depth: PositiveInt
    decoder_num_heads: PositiveInt
    mask_ratio: Ratio
    gamma: NonNegative
    beta: Positive | None
    k: PositiveInt
    norm_pix_loss: bool
    difficulty: str = "p2dist"
    schedule: str = "flatten"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MAEConfig":
        """The config that :meth:`to_dict` wrote."""
        return cls(**{**values, "img_size": as_pair(tuple(values["img_size"]))})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them."""
        return asdict(self) | {"img_size": list(self.img_size)}

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of :func:`efficient_mae.masking.plan_masks` that belong to this model."""
        names = ("grid_size", "patch_size", "mask_ratio", "gamma", "beta", "k", "schedule")
        return {name: getattr(self, name) for name in names} | {"metric": self.difficulty}


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
