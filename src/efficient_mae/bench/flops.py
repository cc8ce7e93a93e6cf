"""What a forward pass costs, counted on the model itself rather than on a formula for it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.backbones import VisionTransformer
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder, MaskLayout

# MAE's own mask ratio: what this project's savings are measured against.
MAE_MASK_RATIO = 0.75


@dataclass(frozen=True)
class Cost:
    """The size of a model and the work of its forward pass.

    Attributes:
        encoder_parameters: learned numbers of the part that is kept after pre-training.
        decoder_parameters: those of the decoder, with its mask token.
        encoder_tokens: tokens of an image in the encoder, its class token among them.
        decoder_tokens: the same in the decoder, mean over random masks.
        masked_patches: patches of an image that the encoder does not see.
        predicted_patches: those that the decoder reconstructs, mean over random masks.
        gmacs: multiply-accumulates of one image's forward pass, 1e9.
        mae_gmacs: the same of :func:`mae_counterpart`.
    """

    encoder_parameters: int
    decoder_parameters: int
    encoder_tokens: int
    decoder_tokens: float
    masked_patches: int
    predicted_patches: float
    gmacs: float
    mae_gmacs: float

    @property
    def ratio(self) -> float:
        """This model's multiply-accumulates as a share of MAE's at mask ratio 0.75."""
        return self.gmacs / self.mae_gmacs


def mae_counterpart(config: MAEConfig) -> MAEConfig:
    """The same model trained as plain MAE: mask ratio 0.75, every masked patch predicted, all weighted alike."""
    return replace(config, mask_ratio=MAE_MASK_RATIO, beta=None, gamma=0.0)


def count_gmacs(config: MAEConfig, images: int = 64, seed: int = 0) -> float:
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
    model, layout = _meta_model(config, images, seed)
    return _count(model, layout) / 1e9


def paper_gmacs(config: MAEConfig, images: int = 256, seed: int = 0) -> float:
    """The same as the paper counts it: every patch embedded, every token through all of the decoder and its head.

    Args:
        config: the model.
        images: masks to average over.
        seed: of the masks.

    Source: the conventions in the reading notes, which reproduce Tables 1, 3 and 4.
    """
    patches = config.grid_size[0] * config.grid_size[1]
    noise = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))
    layout = config.planner()(noise)
    encoded = 1 + layout.ids_keep.shape[1]
    decoded = layout.parts[0].tokens.lengths.double()
    width, decoder_width = config.embed_dim, config.decoder_embed_dim
    pixels = config.in_chans * config.patch_size**2
    encoder = patches * pixels * width + _stack(config.depth, width, torch.tensor([encoded]).double())
    decoder = encoded * width * decoder_width + _stack(config.decoder_depth, decoder_width, decoded)
    return (encoder + decoder + float(decoded.mean()) * decoder_width * pixels) / 1e9


def encoder_gmacs(config: MAEConfig) -> float:
    """Multiply-accumulates of the encoder alone over a whole image, 1e9: Table 1's mask ratio 0."""
    with torch.device("meta"):
        encoder = VisionTransformer(
            config.img_size, config.patch_size, config.in_chans, config.embed_dim, config.depth, config.num_heads
        )
        image = torch.empty(1, config.in_chans, *config.img_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.forward_features(image)
    return counter.get_total_flops() / 2e9


def _stack(depth: int, width: int, tokens: Float64[Tensor, " images"]) -> float:
    """Multiply-accumulates of transformer blocks for sequences of these lengths, mean over the images."""
    return depth * float((12 * width**2 * tokens + 2 * width * tokens.square()).mean())


def model_cost(config: MAEConfig, images: int = 64, seed: int = 0) -> Cost:
    """Parameters, tokens and multiply-accumulates of a model, beside MAE at mask ratio 0.75 of the same size.

    Args:
        config: the model.
        images: masks to average over.
        seed: of the masks.

    Raises:
        InputError: a mask ratio, this model's or MAE's, that leaves nothing visible or nothing masked.
    """
    model, layout = _meta_model(config, images, seed)
    total = sum(p.numel() for p in model.parameters())
    decoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("decoder_", "mask_token")))
    return Cost(
        encoder_parameters=total - decoder,
        decoder_parameters=decoder,
        encoder_tokens=1 + layout.ids_keep.shape[1],
        decoder_tokens=int(layout.parts[0].tokens.lengths.sum()) / images,
        masked_patches=int(layout.mask[0].sum()),
        predicted_patches=len(layout.ids_predict) / images,
        gmacs=_count(model, layout) / 1e9,
        mae_gmacs=count_gmacs(mae_counterpart(config), images, seed),
    )


def _meta_model(config: MAEConfig, images: int, seed: int) -> tuple[MaskedAutoencoder, MaskLayout]:
    """The model without its numbers, and real masks for it."""
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    return model, model.plan(images, generator=torch.Generator().manual_seed(seed))


def _count(model: MaskedAutoencoder, layout: MaskLayout) -> float:
    """Multiply-accumulates of one image's forward pass."""
    images = len(layout.mask)
    pixels = torch.empty(images, model.in_chans, *model.img_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels, layout)
    return counter.get_total_flops() / 2 / images  # the counter takes a multiply-accumulate for two
