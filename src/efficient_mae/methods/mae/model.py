"""Efficient MAE: a ViT encoder over visible patches and a light decoder over visible and predicted patches.

B images, C channels, H x W patches of P x P pixels, N = H * W, V visible patches, T predicted patches of the
batch, S packed decoder tokens, D and E the encoder's and decoder's widths.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from efficient_mae.backbones import VisionTransformer
from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.backbones.patches import patch_statistics, patch_view, pixel_mask, pixel_targets
from efficient_mae.backbones.positions import sincos_position_embedding
from efficient_mae.backbones.vit import LAYER_NORM_EPS, init_weights
from efficient_mae.masking.loss import weighted_error_sum
from efficient_mae.methods.base import Method, Output, check_mask
from efficient_mae.methods.mae.config import MAEConfig, MAESettings, check_objective
from efficient_mae.methods.mae.cross import BlockFeatures, CrossBlock
from efficient_mae.methods.mae.decoder import DecoderBlock
from efficient_mae.methods.mae.layout import CrossLayout, DecoderLayout, MaskLayout
from efficient_mae.methods.mae.packing import spread
from efficient_mae.methods.mae.parts import decode_in_parts


@dataclass(frozen=True)
class MAEOutput(Output):
    """What a forward pass returns.

    Where the layout is in several parts, the weighted sum and the loss alone have a gradient.

    Attributes:
        weighted_sum: of the predicted patches' errors: the numerator of Eq. 2; `loss` is the whole.
        errors: mean squared error of each predicted patch, before weighting.
        plan: the masks that were used, their difficulties and the decoder's packing.
        prediction: predicted patches, in the order of ``predicted.nonzero()``; normalised if norm_pix_loss.
        target: their true values, normalised alike.
    """

    plan: MaskLayout
    prediction: Float[Tensor, "T X"]
    target: Float[Tensor, "T X"]

    @property
    def difficulty(self) -> Float[Tensor, "B H W"]:
        """Of masked patches, 0 where visible; P2Dist in pixels unless the model goes by another metric."""
        return self.plan.difficulty

    @property
    def predicted(self) -> Bool[Tensor, "B H W"]:
        """Masked patches that the decoder reconstructed."""
        return self.plan.predicted

    @property
    def weights(self) -> Float[Tensor, " T"]:
        """Weight of each predicted patch in the loss; d ** -gamma unless the model goes by another schedule."""
        return self.plan.weights


class MaskedAutoencoder(Method):
    """A ViT encoder with MAE's decoder, the Difficulty-Flatten Loss and decoder masking.

    In files the encoder's parameters lie at the top under timm's names, the decoder's beside them under MAE's
    (``decoder_embed``, ``mask_token``, ``decoder_blocks``, ``decoder_norm``, ``decoder_pred``). A decoder of
    cross-attention has ``decoder_features`` in place of ``decoder_embed``.
    Make one with :func:`efficient_mae.create_model`.
    """

    Settings = MAESettings
    Config = MAEConfig
    config: MAEConfig
    backbone: VisionTransformer

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        check_objective(config)
        width = config.decoder_embed_dim
        cross = config.decoder == "cross"
        if cross:
            self.decoder_features = BlockFeatures(config.decoder_depth, config.depth)
        else:
            self.decoder_embed = Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_position_embedding(width, config.grid_size)[None])
        self.decoder_pos_embed: Tensor
        heads = config.decoder_num_heads
        self.decoder_blocks = nn.ModuleList(
            CrossBlock(width, heads, config.embed_dim) if cross else DecoderBlock(width, heads)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_pred = Linear(width, config.patch_size**2 * config.in_chans)
        for module in self._decoder_modules():
            module.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def plan(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        mask: Bool[Tensor, "B H W"] | None = None,
    ) -> MaskLayout:
        """Masks for a batch, laid out: the given ones, or random ones from the generator; on their device.

        What else is chosen or shuffled by chance is the generator's too.

        Raises:
            InputError: a mask of another shape, or one that leaves an image nothing visible or nothing masked.
        """
        if mask is None:
            return cast(MaskLayout, super().plan(batch_size, generator))
        check_mask(mask, batch_size, self.config.grid_size)
        noise = None
        if self.config.by_chance:
            device = mask.device if generator is None else generator.device
            noise = torch.rand(mask.flatten(1).shape, generator=generator, device=device).to(mask.device)
        return self.config.planner().plan(mask, noise=noise)

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
        self.backbone.check_images(images)
        layout = mask if isinstance(mask, MaskLayout) else self.plan(len(images), generator, mask)
        layout = layout.to(images.device)
        latent, target = self.encode(images, layout), self.targets(images, layout)
        if len(layout.parts) > 1 and torch.is_grad_enabled():
            parameters = self._decoder_parameters()
            total, prediction, errors = decode_in_parts(self.decode, parameters, latent, target, layout)
        else:
            pieces = latent.split([part.num_images for part in layout.parts])
            predictions = [self.decode(*pair) for pair in zip(pieces, layout.parts, strict=True)]
            prediction = predictions[0] if len(predictions) == 1 else torch.cat(predictions)
            total, errors = weighted_error_sum(prediction, target, layout.weights)
        return MAEOutput(total, errors, layout, prediction, target)

    def _decoder_modules(self) -> tuple[nn.Module, ...]:
        """What :meth:`decode` uses."""
        first = () if self.config.decoder == "cross" else (self.decoder_embed,)
        return *first, self.decoder_blocks, self.decoder_norm, self.decoder_pred

    def _decoder_parameters(self) -> list[nn.Parameter]:
        parameters = [self.mask_token, *(p for module in self._decoder_modules() for p in module.parameters())]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def encode(
        self, images: Float[Tensor, "B C h w"], layout: MaskLayout
    ) -> Float[Tensor, "B encoded D"] | Float[Tensor, "B J encoded D"]:
        """What the decoder is given of visible patches: the encoder's features, or those of each of its blocks."""
        if self.config.decoder == "cross":
            return self.decoder_features(self.backbone.forward_every(images, layout.ids_keep))
        return self.backbone.forward_features(images, layout.ids_keep)

    def decode(self, latent: Tensor, layout: DecoderLayout | CrossLayout) -> Float[Tensor, "T X"]:
        """Predict the layout's targets from what :meth:`encode` gives of their images.

        All token-wise work is on packed rows, and the head's is for the predicted patches only.
        """
        hidden = self.mask_token[0] + self.decoder_pos_embed[0, 1:]  # (N, E)
        if isinstance(layout, CrossLayout):
            x = self._cross_attend(latent, hidden, layout)  # (T, E)
        else:
            x = self._self_attend(latent, hidden, layout)
        return self.decoder_pred(self.decoder_norm(x.index_select(0, layout.order_predict)))

    def _self_attend(self, latent: Tensor, hidden: Tensor, layout: DecoderLayout) -> Float[Tensor, "T E"]:
        """The paper's decoder: predicted and visible patches attend to each other.

        The first block computes the queries, keys and values of hidden patches once a position, since there they are
        the same in every image. The last block computes its queries and its MLP for the predicted patches only.
        """
        position = self.decoder_pos_embed[0].index_select(0, layout.positions_encoded)
        encoded = self.decoder_embed(latent).flatten(0, 1) + position
        blocks = cast(list[DecoderBlock], list(self.decoder_blocks))
        if len(blocks) == 1:
            x = spread(torch.cat([encoded, hidden]), layout)  # (S, E)
        else:
            x = self.backbone.run_block(blocks[0].forward_shared, encoded, hidden, layout)
        for block in blocks[1:-1]:
            x = self.backbone.run_block(block, x, layout.tokens)
        last = blocks[-1].forward_queries
        return self.backbone.run_block(last, x, layout.rows_predict, layout.targets, layout.tokens)

    def _cross_attend(self, latent: Tensor, hidden: Tensor, layout: CrossLayout) -> Float[Tensor, "T E"]:
        """Predicted patches attend to visible ones alone, whose positions are the encoder's."""
        features = latent.transpose(0, 1).index_select(1, layout.order_images).flatten(1, 2)  # (J, S, D)
        first, *blocks = cast(list[CrossBlock], list(self.decoder_blocks))
        x = self.backbone.run_block(first.forward_shared, hidden, features[0], layout)
        for block, seen in zip(blocks, features[1:], strict=True):
            x = self.backbone.run_block(block, x, seen, layout)
        return x

    def targets(self, images: Float[Tensor, "B C h w"], layout: MaskLayout) -> Float[Tensor, "T X"]:
        """The predicted patches' pixels, normalised by each patch's own statistics if norm_pix_loss."""
        target = pixel_targets(images, layout.ids_predict, self.config.patch_size)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return target

    def paint(self, images: Float[Tensor, "B C h w"], out: MAEOutput) -> Float[Tensor, "B C h w"]:
        """The images with their predicted patches filled in.

        Visible pixels are kept; masked patches that the decoder leaves out are 0, the mean colour of a normalised
        image. Under norm_pix_loss the prediction has no scale of its own, and each patch is de-normalised by the
        mean and standard deviation of its true pixels.
        """
        size = self.config.patch_size
        prediction = out.prediction.to(images.dtype)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(pixel_targets(images, out.plan.ids_predict, size))
            prediction = prediction * std + mean
        painted = images.masked_fill(pixel_mask(out.mask, size), 0.0)
        pixels = prediction.view(-1, size, size, self.config.in_chans).permute(0, 3, 1, 2)
        patch_view(painted, size)[out.predicted] = pixels  # writes through the view
        return painted
