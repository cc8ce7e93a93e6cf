"""A method that is not MAE: each hidden patch's mean colour, from the mean of all visible tokens and its position."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from efficient_mae.backbones.patches import patch_view
from efficient_mae.flat import Flat
from efficient_mae.masking import mask_from_noise
from efficient_mae.methods import Method, MethodConfig, MethodSettings, Output, register
from efficient_mae.ranges import Ratio


@dataclass(frozen=True)
class ColourPlan:
    mask: Bool[Tensor, "B H W"]
    ids_keep: Int64[Tensor, "B V"]
    ids_hidden: Int64[Tensor, " T"]
    weights: Float[Tensor, " T"]

    @property
    def images(self) -> Int64[Tensor, " T"]:
        return self.ids_hidden // self.mask[0].numel()

    def to(self, device: torch.device | str) -> "ColourPlan":
        return Flat.of(self).to(torch.device(device)).value


@dataclass(frozen=True)
class ColourPlanner:
    grid_size: tuple[int, int]
    hidden: float

    def __call__(self, noise: Tensor, progress: Tensor | None = None) -> ColourPlan:
        mask = mask_from_noise(noise, self.grid_size, self.hidden)
        ids_hidden = mask.flatten().nonzero()[:, 0]
        ids_keep = (~mask.flatten(1)).nonzero()[:, 1].view(len(mask), -1)
        return ColourPlan(mask, ids_keep, ids_hidden, torch.ones(len(ids_hidden)))


@dataclass(frozen=True, kw_only=True)
class ColourSettings(MethodSettings):
    hidden: Ratio = 0.5
    """share of patches whose colour is asked for"""


@dataclass(frozen=True, kw_only=True)
class ColourConfig(MethodConfig, ColourSettings):
    method = "colour"

    def planner(self, unit: int | None = None) -> ColourPlanner:
        return ColourPlanner(self.grid_size, self.hidden)


class Colour(Method):
    Settings, Config = ColourSettings, ColourConfig

    def __init__(self, config: ColourConfig):
        super().__init__(config)
        rows, columns = config.grid_size
        self.place = nn.Parameter(torch.zeros(rows * columns, config.embed_dim))
        self.colour = nn.Linear(config.embed_dim, config.in_chans)

    def forward(self, images: Tensor, plan: ColourPlan, /) -> Output:
        plan = plan.to(images.device)
        mean = self.backbone.forward_features(images, plan.ids_keep).mean(dim=1)
        predicted = self.colour(mean[plan.images] + self.place[plan.ids_hidden % len(self.place)])
        truth = patch_view(images, self.config.patch_size).flatten(0, 2)[plan.ids_hidden].mean(dim=(2, 3))
        errors = (predicted.float() - truth).square().mean(dim=1)
        return Output((plan.weights * errors).sum(), errors, plan)


register(Colour)
