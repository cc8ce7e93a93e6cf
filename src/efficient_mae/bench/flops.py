"""What a forward pass costs, counted on the model itself rather than on a formula for it."""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.backbones import Backbone
from efficient_mae.backbones.patches import as_pair
from efficient_mae.methods import METHODS, Method, MethodConfig, Plan


@dataclass(frozen=True)
class Cost:
    """The size of a model and the work of its forward pass.

    Attributes:
        encoder_parameters: learned numbers of the part that is kept after pre-training.
        decoder_parameters: the others: those of a decoder, with its mask token.
        tokens: of an image, as :meth:`efficient_mae.methods.MethodConfig.tokens` counts them.
        masked_patches: patches of an image that are hidden, mean.
        gmacs: multiply-accumulates of one image's forward pass, 1e9.
        mae_gmacs: the same of the model's baseline, MAE at mask ratio 0.75.
    """

    encoder_parameters: int
    decoder_parameters: int
    tokens: dict[str, float]
    masked_patches: int
    gmacs: float
    mae_gmacs: float

    @property
    def ratio(self) -> float:
        """This model's multiply-accumulates as a share of MAE's at mask ratio 0.75."""
        return self.gmacs / self.mae_gmacs


@cache
def count_gmacs(config: MethodConfig, images: int = 64, seed: int = 0) -> float:
    """Multiply-accumulates of one image's forward pass, 1e9, mean over random masks.

    What the paper calls GFLOPs (Tables 3 and 4). The model is built on the meta device: nothing is allocated or
    computed, so the largest takes a second.

    Args:
        config: the model.
        images: masks to average over; the decoder's work differs from mask to mask.
        seed: of the masks.

    Raises:
        InputError: a mask ratio that leaves nothing visible or nothing masked.
    """
    model, plan = _meta_model(config, images, seed)
    pixels = torch.empty(images, config.in_chans, *config.img_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels, plan)
    return counter.get_total_flops() / 2e9 / images  # the counter takes a multiply-accumulate for two


def encoder_gmacs(model: MethodConfig | Backbone) -> float:
    """Multiply-accumulates of the encoder alone over a whole image, 1e9: Table 1's mask ratio 0."""
    with torch.device("meta"):
        encoder = model.make_backbone() if isinstance(model, MethodConfig) else type(model)(**model.arguments)
        image = torch.empty(1, encoder.in_chans, *as_pair(encoder.arguments["img_size"]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.forward_features(image)
    return counter.get_total_flops() / 2e9


def model_cost(config: MethodConfig, images: int = 64, seed: int = 0) -> Cost:
    """Parameters, tokens and multiply-accumulates of a model, beside MAE at mask ratio 0.75 of the same size.

    Args:
        config: the model.
        images: masks to average over.
        seed: of the masks.

    Raises:
        InputError: a mask ratio, this model's or MAE's, that leaves nothing visible or nothing masked.
    """
    model, plan = _meta_model(config, images, seed)
    encoder = sum(parameter.numel() for parameter in model.backbone.parameters())
    return Cost(
        encoder_parameters=encoder,
        decoder_parameters=sum(parameter.numel() for parameter in model.parameters()) - encoder,
        tokens=config.tokens(plan),
        masked_patches=round(int(plan.mask.sum()) / len(plan.mask)),
        gmacs=count_gmacs(config, images, seed),
        mae_gmacs=count_gmacs(config.baseline(), images, seed),
    )


def _meta_model(config: MethodConfig, images: int, seed: int) -> tuple[Method, Plan]:
    """The model without its numbers, and a real plan for it."""
    with torch.device("meta"):
        model = METHODS[config.method](config)
    return model, model.plan(images, generator=torch.Generator().manual_seed(seed))
