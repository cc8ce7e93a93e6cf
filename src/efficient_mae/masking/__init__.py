"""Pure functions of the mask: which patches are hidden, how hard each is, and what it weighs.

No module, no state, no assumption about the device. Letters in shapes: B images, H x W the grid of
patches, N = H * W patches, V visible patches of an image, T predicted patches of the batch, P patch size.
"""

from efficient_mae.masking.blockwise import blockwise_mask_from_noise, check_blocks, num_hidden
from efficient_mae.masking.difficulty import METRICS, difficulty
from efficient_mae.masking.loss import difficulty_flatten_loss
from efficient_mae.masking.p2dist import p2dist, p2dist_exact
from efficient_mae.masking.random import mask_from_noise, num_visible, random_masking, unit_mask_from_noise
from efficient_mae.masking.schedules import SCHEDULES, check_schedule
from efficient_mae.masking.settings import MaskSettings
from efficient_mae.masking.targets import TARGETS, check_targets, flatten_weights, select_targets

__all__ = [
    "METRICS",
    "SCHEDULES",
    "TARGETS",
    "MaskSettings",
    "blockwise_mask_from_noise",
    "check_blocks",
    "check_schedule",
    "check_targets",
    "difficulty",
    "difficulty_flatten_loss",
    "flatten_weights",
    "mask_from_noise",
    "num_hidden",
    "num_visible",
    "p2dist",
    "p2dist_exact",
    "random_masking",
    "select_targets",
    "unit_mask_from_noise",
]
