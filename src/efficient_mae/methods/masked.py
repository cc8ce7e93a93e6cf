"""Methods whose encoder sees whole images, with a mask token in place of hidden patches: SimMIM, MaskFeat, BEiT.

B images, C channels, h x w pixels, H x W patches, N = H * W, T hidden patches of the batch.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from efficient_mae.flat import Flat
from efficient_mae.methods.base import Method, MethodConfig, Output, check_mask


@dataclass(frozen=True)
class MaskedPlan:
    """What is hidden in a batch, and so what is learned.

    Attributes:
        mask: True = hidden.
        ids_hidden: the T hidden patches, by index into the B * N patches, ascending.
        weights: of the hidden patches in the loss: all alike.
    """

    mask: Bool[Tensor, "B H W"]
    ids_hidden: Int64[Tensor, " T"]
    weights: Float[Tensor, " T"]

    @property
    def images(self) -> Int64[Tensor, " T"]:
        """The image, of the batch, that each hidden patch belongs to."""
        return self.ids_hidden // self.mask[0].numel()

    def to(self, device: torch.device | str) -> "MaskedPlan":
        """The same on a device."""
        device = torch.device(device)
        return self if self.mask.device == device else Flat.of(self).to(device, non_blocking=True).value


@dataclass(frozen=True)
class MaskedPlanner:
    """Makes plans of masks; it has no weights and no device, and can be pickled.

    Attributes:
        make_mask: from noise, one number a patch, to a mask: a function of a module, its settings bound by `partial`.
    """

    make_mask: Callable[[Float[Tensor, "B N"]], Bool[Tensor, "B H W"]]

    def __call__(self, noise: Float[Tensor, "B N"], progress: Float64[Tensor, " B"] | None = None) -> MaskedPlan:
        """The plan of random masks; how far training is changes nothing."""
        return self.plan(self.make_mask(noise))

    def plan(self, mask: Bool[Tensor, "B H W"]) -> MaskedPlan:
        """The plan of given masks."""
        ids_hidden = mask.flatten().nonzero()[:, 0]
        return MaskedPlan(mask, ids_hidden, torch.ones(len(ids_hidden), device=mask.device))


def tokens_of(plan: MaskedPlan) -> dict[str, float]:
    """Of a ViT that sees all patches, its class token among them, and the patches that are predicted, mean."""
    images, patches = plan.mask.shape[0], plan.mask[0].numel()
    return {"encoder_tokens": 1 + patches, "predicted_patches": len(plan.ids_hidden) / images}


class MaskedMethod(Method):
    """A method whose encoder sees whole images, with a learned mask token in place of hidden patches."""

    def __init__(self, config: MethodConfig):
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.backbone.dims[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images: Float[Tensor, "B C h w"],
        mask: Bool[Tensor, "B H W"] | MaskedPlan | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Hide patches, encode whole images, take the loss of what is hidden.

        Args:
            images: normalised images.
            mask: True = hidden; or a plan made with the batch; None draws random masks.
            generator: source of randomness for the masks.

        Raises:
            InputError: images or mask of a shape that this model does not take.
        """
        plan = mask if isinstance(mask, MaskedPlan) else self.plan(len(images), generator, mask)
        plan = plan.to(images.device)
        return self.learn(images, self.backbone.forward_masked(images, plan.mask, self.mask_token), plan)

    def plan(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        mask: Bool[Tensor, "B H W"] | None = None,
    ) -> MaskedPlan:
        """The plan of given masks, or of random ones from the generator; on their device.

        Raises:
            InputError: a mask of another shape.
        """
        if mask is None:
            return cast(MaskedPlan, super().plan(batch_size, generator))
        check_mask(mask, batch_size, self.config.grid_size)
        return cast(MaskedPlanner, self.config.planner()).plan(mask)

    @abstractmethod
    def learn(
        self, images: Float[Tensor, "B C h w"], latent: Float[Tensor, "B rows columns D"], plan: MaskedPlan
    ) -> Output:
        """From the features of images with hidden patches to the loss.

        Args:
            images: normalised, whole.
            latent: the encoder's features of what was left of them, after the last norm.
            plan: what was hidden, on the images' device.
        """
