"""Efficient MAE: a ViT encoder over visible patches and a light decoder over visible and predicted patches.

B images, C channels, H x W patches of P x P pixels, N = H * W, V visible patches, T predicted patches of the
batch, S packed decoder tokens, D and E the encoder's and decoder's widths.
"""

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.backbones.patches import patch_statistics, pixel_targets
from efficient_mae.backbones.positions import sincos_position_embedding
from efficient_mae.backbones.vit import LAYER_NORM_EPS, VisionTransformer, init_weights
from efficient_mae.errors import InputError, did_you_mean
from efficient_mae.masking.loss import weighted_error_sum
from efficient_mae.methods.mae.config import MAEConfig, MAESettings, check_objective, resolve_model
from efficient_mae.methods.mae.decoder import DecoderBlock
from efficient_mae.methods.mae.layout import DecoderLayout, MaskLayout
from efficient_mae.methods.mae.packing import spread
from efficient_mae.methods.mae.parts import decode_in_parts


@dataclass(frozen=True)
class MAEOutput:
    """What a forward pass returns.

    Where the layout is in several parts, the weighted sum and the loss alone have a gradient.

    Attributes:
        weighted_sum: of the predicted patches' errors: the numerator of Eq. 2.
        prediction: predicted patches, in the order of ``predicted.nonzero()``; normalised if norm_pix_loss.
        target: their true values, normalised alike.
        patch_loss: mean squared error of each predicted patch, before weighting.
        layout: the masks that were used, their difficulties and the decoder's packing.
    """

    weighted_sum: Float[Tensor, ""]
    prediction: Float[Tensor, "T X"]
    target: Float[Tensor, "T X"]
    patch_loss: Float[Tensor, " T"]
    layout: MaskLayout

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Difficulty-Flatten Loss of this batch (Eq. 2)."""
        return self.weighted_sum / self.weights.to(self.weighted_sum.dtype).sum()

    @property
    def mask(self) -> Bool[Tensor, "B H W"]:
        """True = masked."""
        return self.layout.mask

    @property
    def difficulty(self) -> Float[Tensor, "B H W"]:
        """Of masked patches, 0 where visible; P2Dist in pixels unless the model goes by another metric."""
        return self.layout.difficulty

    @property
    def predicted(self) -> Bool[Tensor, "B H W"]:
        """Masked patches that the decoder reconstructed."""
        return self.layout.predicted

    @property
    def weights(self) -> Float[Tensor, " T"]:
        """Weight of each predicted patch in the loss; d ** -gamma unless the model goes by another schedule."""
        return self.layout.weights


class MaskedAutoencoder(VisionTransformer):
    """A ViT encoder with MAE's decoder, the Difficulty-Flatten Loss and decoder masking.

    The encoder's parameters lie at the top under timm's names, the decoder's beside them under MAE's
    (``decoder_embed``, ``mask_token``, ``decoder_blocks``, ``decoder_norm``, ``decoder_pred``).
    Make one with :func:`create_model`.
    """

    def __init__(self, config: MAEConfig):
        super().__init__(
            config.img_size,
            config.patch_size,
            config.in_chans,
            config.embed_dim,
            config.depth,
            config.num_heads,
        )
        check_objective(config)
        width = config.decoder_embed_dim
        self.config = config
        self.decoder_embed = Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_position_embedding(width, self.grid_size)[None])
        self.decoder_pos_embed: Tensor
        self.decoder_blocks = nn.ModuleList(
            DecoderBlock(width, config.decoder_num_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_pred = Linear(width, config.patch_size**2 * config.in_chans)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            module.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def plan(
        self,
        batch_size: int,
        mask: Bool[Tensor, "B H W"] | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskLayout:
        """Masks for a batch, laid out: the given ones, or random ones from the generator; on their device.

        Raises:
            InputError: a mask of another shape, or one that leaves an image nothing visible or nothing masked.
        """
        if mask is None:
            device = generator.device if generator is not None else None
            patches = self.grid_size[0] * self.grid_size[1]
            noise = torch.rand(batch_size, patches, generator=generator, device=device)
            return self.config.planner()(noise)
        if tuple(mask.shape) != (batch_size, *self.grid_size) or mask.dtype != torch.bool:
            raise InputError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}: "
                f"must be torch.bool of shape {(batch_size, *self.grid_size)}, True = masked"
            )
        return self.config.planner().plan(mask)

    def forward(
        self,
        images: Float[Tensor, "B C h w"],
        mask: Bool[Tensor, "B H W"] | MaskLayout | None = None,
        generator: torch.Generator | None = None,
    ) -> MAEOutput:
        """Hide patches, encode the visible ones, reconstruct the predicted ones, take the loss.

        Args:
            images: normalised images.
            mask: True = masked, the same number in every image; or a layout made with the batch; None draws
                random masks.
            generator: source of randomness for the masks.

        Raises:
            InputError: images or mask of a shape that this model does not take.
        """
        self.check_images(images)
        layout = mask if isinstance(mask, MaskLayout) else self.plan(len(images), mask, generator)
        layout = layout.to(images.device)
        latent, target = self.forward_features(images, layout.ids_keep), self.targets(images, layout)
        if len(layout.parts) > 1 and torch.is_grad_enabled():
            parameters = self._decoder_parameters()
            total, prediction, patch_loss = decode_in_parts(self.decode, parameters, latent, target, layout)
        else:
            pieces = latent.split([part.num_images for part in layout.parts])
            predictions = [self.decode(*pair) for pair in zip(pieces, layout.parts, strict=True)]
            prediction = predictions[0] if len(predictions) == 1 else torch.cat(predictions)
            total, patch_loss = weighted_error_sum(prediction, target, layout.weights)
        return MAEOutput(total, prediction, target, patch_loss, layout)

    def _decoder_parameters(self) -> list[nn.Parameter]:
        modules = (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred)
        parameters = [self.mask_token, *(p for module in modules for p in module.parameters())]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def decode(self, latent: Float[Tensor, "B encoded D"], layout: DecoderLayout) -> Float[Tensor, "T X"]:
        """Predict the layout's targets from the encoder's tokens.

        All token-wise work is on packed rows. The first block computes the queries, keys and values of hidden
        patches once a position, since there they are the same in every image. The last block computes its queries
        and its MLP, and the head its pixels, for the predicted patches only.
        """
        position = self.decoder_pos_embed[0]
        encoded = self.decoder_embed(latent).flatten(0, 1)
        encoded = encoded + position.index_select(0, layout.positions_encoded)
        hidden = self.mask_token[0] + position[1:]  # (N, E)
        blocks = cast(list[DecoderBlock], list(self.decoder_blocks))
        if len(blocks) == 1:
            x = spread(torch.cat([encoded, hidden]), layout)  # (S, E)
        else:
            x = self.run_block(blocks[0].forward_shared, encoded, hidden, layout)
        for block in blocks[1:-1]:
            x = self.run_block(block, x, layout.tokens)
        last = blocks[-1].forward_queries
        x = self.run_block(last, x, layout.rows_predict, layout.targets, layout.tokens)  # (T, E)
        return self.decoder_pred(self.decoder_norm(x.index_select(0, layout.order_predict)))

    def targets(self, images: Float[Tensor, "B C h w"], layout: MaskLayout) -> Float[Tensor, "T X"]:
        """The predicted patches' pixels, normalised by each patch's own statistics if norm_pix_loss."""
        target = pixel_targets(images, layout.ids_predict, self.patch_size)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return target

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B H W"] | MaskLayout | None = None
    ) -> Float[Tensor, "B C h w"]:
        """The images with their predicted patches filled in.

        Visible pixels are kept; masked patches that the decoder leaves out are 0, the mean colour of a normalised
        image. Under norm_pix_loss the prediction has no scale of its own, and each patch is de-normalised by the
        mean and standard deviation of its true pixels.
        """
        return self.paint(images, self(images, mask))

    def paint(self, images: Float[Tensor, "B C h w"], out: MAEOutput) -> Float[Tensor, "B C h w"]:
        """:meth:`reconstruct` from an output that is at hand."""
        size, (rows, columns) = self.patch_size, self.grid_size
        prediction = out.prediction.to(images.dtype)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(pixel_targets(images, out.layout.ids_predict, size))
            prediction = prediction * std + mean
        hidden = out.mask.repeat_interleave(size, 1).repeat_interleave(size, 2)
        painted = images.masked_fill(hidden[:, None], 0.0)
        patches = painted.view(len(images), self.in_chans, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        patches[out.predicted] = prediction.view(-1, size, size, self.in_chans)  # writes through the view
        return painted


def create_model(name: str, **settings: Any) -> MaskedAutoencoder:
    """A model by name, with random weights from torch's global generator.

    Args:
        name: ``mae_vit_{tiny,small,base,large,huge}_patch{P}``.
        settings: the fields of :class:`efficient_mae.models.MAESettings`, which says what each is: `img_size`
            (pixels, one number or (height, width)), `in_chans`, `mask_ratio`, `gamma`, `beta` (pixels at patch size
            16), `norm_pix_loss`, `decoder_depth`, ... ``beta=None, gamma=0`` is MAE.

    Raises:
        InputError: anything that cannot work, with what would be accepted.

    Source: Sec. 5.1 for the defaults.
    """
    known = {field.name for field in fields(MAESettings)}
    for unknown in settings.keys() - known:
        raise InputError(f"{unknown}={settings[unknown]!r}: not a setting of {name}{did_you_mean(unknown, known)}")
    return MaskedAutoencoder(resolve_model(name, MAESettings(**settings)))
