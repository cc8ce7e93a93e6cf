"""The settings of the method: what is hidden, what is predicted, and what each prediction weighs."""

from dataclasses import dataclass, replace
from typing import TypeVar

from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.ranges import NonNegative, Positive, PositiveInt, Ratio, Settings, Share

_Settings = TypeVar("_Settings", bound="MaskSettings")


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings):
    """From a mask ratio to targets and weights; the defaults are the paper's (Sec. 5.1)."""

    mask_ratio: Ratio = 0.85
    """share of patches hidden from the encoder"""
    gamma: NonNegative = 0.6
    """exponent of the Difficulty-Flatten Loss; 0 weights all patches alike"""
    beta: Positive | None = 26.0
    """P2Dist, in pixels at patch size 16, beyond which a patch is not reconstructed (null: reconstruct all)"""
    targets: str = "p2dist"
    """what is reconstructed: p2dist, what beta leaves; or prediction_ratio of the hidden patches, chosen at random or
    farthest, by furthest-point sampling"""
    prediction_ratio: Share | None = None
    """share of the hidden patches to reconstruct, with targets random or farthest and beta null"""
    shuffle: str | None = None
    """controls, with targets p2dist: targets, as many of an image's hidden patches as beta leaves, but at random;
    difficulties, shuffled among an image's hidden patches before beta and gamma see them (null: neither)"""
    k: PositiveInt = 8
    """points that P2Dist looks at"""
    difficulty: str = "p2dist"
    """p2dist, p2dist_exact, visible_neighbours, inverse_distance_sum or nearest_patch (Table 5)"""
    schedule: str = "flatten"
    """flatten (weights d ** -gamma), threshold (all alike), curriculum or normalise (Table 6)"""

    def with_every_target(self: _Settings) -> _Settings:
        """The same, but that every hidden patch is reconstructed, and weighs d ** -gamma of its P2Dist."""
        all_of_them = {"beta": None, "targets": "p2dist", "prediction_ratio": None, "shuffle": None}
        return replace(self, **all_of_them, difficulty="p2dist", schedule="flatten")

    def targets_in_words(self) -> str:
        """What is reconstructed, for captions: `beta 26`, or `targets random 0.5`."""
        if self.prediction_ratio is not None:
            return f"targets {self.targets} {self.prediction_ratio:g}"
        beta = "beta none" if self.beta is None else f"beta {self.beta:g}"
        return beta if self.shuffle is None else f"{beta}, {self.shuffle} shuffled"

    @property
    def by_chance(self) -> bool:
        """What is reconstructed, or what it weighs, is chosen by chance, so that a mask alone doesn't say it."""
        return self.prediction_ratio is not None or self.shuffle is not None

    def beta_in_pixels(self, patch_size: int) -> float | None:
        """The largest P2Dist that is reconstructed at a patch size; None for no limit."""
        return None if self.beta is None else self.beta * patch_size / BETA_PATCH_SIZE
