"""From random numbers to a batch's layout: the method's masking from end to end, as a loader's worker does it."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.masking.difficulty import difficulty, shuffle_difficulty
from efficient_mae.masking.random import mask_from_noise
from efficient_mae.masking.schedules import (
    NORM_MASK_RATIO,
    curriculum_threshold,
    normalising_weights,
    sample_difficulties,
)
from efficient_mae.masking.settings import MaskSettings
from efficient_mae.masking.targets import (
    farthest_targets,
    flatten_weights,
    num_targets,
    random_targets,
    select_targets,
)
from efficient_mae.methods.mae.layout import MaskLayout, build_layout


@dataclass(frozen=True)
class MaskPlanner:
    """Masks, difficulties, targets, weights and packing of a batch; no weights, no device, and it can be pickled.

    Attributes:
        grid_size: (H, W) in patches.
        patch_size: P, in pixels.
        settings: what is hidden and predicted, and what it weighs.
        part_size: images that the decoder takes at a time (:func:`build_layout`); None takes all.
        decoder: for which sequences are packed.
    """

    grid_size: tuple[int, int]
    patch_size: int
    settings: MaskSettings = field(default_factory=MaskSettings)
    part_size: int | None = None
    decoder: str = "self"

    def __call__(self, noise: Float[Tensor, "B N"], progress: Float64[Tensor, " B"] | None = None) -> MaskLayout:
        """Random masks, laid out.

        Args:
            noise: independent numbers, one a patch.
            progress: of training when each image is seen, from 0 to 1, for the curriculum; None stands for its end.
        """
        return self.plan(mask_from_noise(noise, self.grid_size, self.settings.mask_ratio), progress, noise)

    def plan(
        self,
        mask: Bool[Tensor, "B H W"],
        progress: Float64[Tensor, " B"] | None = None,
        noise: Float[Tensor, "B N"] | None = None,
    ) -> MaskLayout:
        """Given masks, laid out.

        The schedule ``flatten`` weights patches by d ** -gamma; the others don't: ``threshold`` weights all alike, so
        does ``curriculum``, which begins with the easiest, and ``normalise`` weights them by how often their like
        occur at mask ratio 0.75 (Table 6). All keep to beta.

        Args:
            mask: True = masked.
            progress: as above.
            noise: as above; what is chosen or shuffled by chance needs it.

        Raises:
            InputError: images with different numbers of visible patches, or without a visible or a masked one, or no
                noise where it is needed.

        Source: Secs. 3.3, 4.1 and 4.2.
        """
        given = self.settings
        if given.by_chance and noise is None:
            what = f"targets={given.targets}" if given.shuffle is None else f"shuffle={given.shuffle}"
            raise InputError(f"{what}: chosen by chance; the masks need their noise")
        measured = chosen_by = difficulty(mask, self.patch_size, given.difficulty, given.k)
        if given.shuffle is not None and noise is not None:
            chosen_by = shuffle_difficulty(measured, mask, noise)
        predicted = self._targets(mask, chosen_by, noise)
        if given.shuffle == "difficulties":
            measured = chosen_by
        if given.schedule == "curriculum" and progress is not None:
            present = self._difficulties(given.mask_ratio)
            thresholds = [curriculum_threshold(present, one) for one in progress.tolist()]
            predicted &= measured <= torch.tensor(thresholds, device=mask.device)[:, None, None]
        if given.schedule == "normalise":
            present, norm = self._difficulties(given.mask_ratio), self._difficulties(NORM_MASK_RATIO)
            weights = normalising_weights(mask, measured, present, norm)
        else:
            weights = flatten_weights(measured, given.gamma if given.schedule == "flatten" else 0.0)
        return build_layout(mask, measured, predicted, weights, self.part_size, self.decoder)

    def _targets(self, mask: Tensor, measured: Tensor, noise: Tensor | None) -> Bool[Tensor, "B H W"]:
        given = self.settings
        candidates = select_targets(measured, self.patch_size, given.beta, mask)
        if given.prediction_ratio is None:
            return candidates
        assert noise is not None, "asked for before"
        choose = {"random": random_targets, "farthest": farthest_targets}[given.targets]
        # As many patches are hidden in every image, which the layout makes sure of.
        return choose(candidates, noise, num_targets(int(mask[0].sum()), given.prediction_ratio))

    def _difficulties(self, mask_ratio: float) -> Float[Tensor, " patches"]:
        given = self.settings
        return sample_difficulties(self.grid_size, mask_ratio, self.patch_size, given.difficulty, given.k)
