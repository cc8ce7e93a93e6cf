"""The settings of the method: what is hidden, what is predicted, and what each prediction weighs."""

from dataclasses import dataclass

from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.ranges import NonNegative, Positive, PositiveInt, Ratio, Settings


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings):
    """From a mask ratio to targets and weights; the defaults are the paper's (Sec. 5.1)."""

    mask_ratio: Ratio = 0.85
    """share of patches hidden from the encoder"""
    gamma: NonNegative = 0.6
    """exponent of the Difficulty-Flatten Loss; 0 weights all patches alike"""
    beta: Positive | None = 26.0
    """P2Dist, in pixels at patch size 16, beyond which a patch is not reconstructed (null: reconstruct all)"""
    k: PositiveInt = 8
    """points that P2Dist looks at"""
    difficulty: str = "p2dist"
    """p2dist, p2dist_exact, visible_neighbours, inverse_distance_sum or nearest_patch (Table 5)"""
    schedule: str = "flatten"
    """flatten (weights d ** -gamma), threshold (all alike), curriculum or normalise (Table 6)"""

    def beta_in_pixels(self, patch_size: int) -> float | None:
        """The largest P2Dist that is reconstructed at a patch size; None for no limit."""
        return None if self.beta is None else self.beta * patch_size / BETA_PATCH_SIZE
