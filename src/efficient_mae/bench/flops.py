"""What a forward pass costs, counted on the model itself rather than on a formula for it."""

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.masking import MaskLayout, plan_masks
from efficient_mae.models import MAEConfig, MaskedAutoencoder

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
        decoder_tokens=len(layout.positions) / images,
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


def paper_gmacs(config: MAEConfig, images: int = 256, seed: int = 0) -> float:
    """Multiply-accumulates of one image's forward pass, 1e9, counted as the paper counts its "GFLOPs".

    More than :func:`count_gmacs`: every patch is embedded, hidden ones too, and the decoder's last block and its head
    work on every token.

    Args:
        config: the model.
        images: masks to average over.
        seed: of the masks.

    Raises:
        InputError: a mask ratio that leaves nothing visible or nothing masked.

    Source: the reading notes' costs, which are Tables 1, 3 and 4's to a percent.
    """
    patches = config.grid_size[0] * config.grid_size[1]
    noise = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))
    layout = plan_masks(noise, **config.masking)
    patch = config.patch_size**2 * config.in_chans
    encoded = torch.tensor([1.0 + layout.ids_keep.shape[1]])
    decoded = layout.tokens.cu_seqlens.diff().double()
    encoder = (
        config.depth * _block_macs(encoded, config.embed_dim) + encoded * config.embed_dim * config.decoder_embed_dim
    )
    decoder = config.decoder_depth * _block_macs(decoded, config.decoder_embed_dim)
    embedding = patches * patch * config.embed_dim
    head = decoded * config.decoder_embed_dim * patch
    return float(embedding + encoder.mean() + (decoder + head).mean()) / 1e9


def _block_macs(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """Multiply-accumulates of a block: its linear maps, and attention's two products."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width
