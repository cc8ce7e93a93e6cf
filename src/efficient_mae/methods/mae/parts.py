"""The decoder's forward and backward passes, part by part of the batch.

Of MAE's activations the decoder's are the larger half at high mask ratios, for its sequences are long. They need not
lie in memory for the whole batch at once: the loss is a weighted sum over patches, so the gradient of any part of it
is known up to a factor as soon as that part is decoded. Nothing is computed twice.

B images, T predicted patches of the batch, X numbers of a patch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from efficient_mae.masking.loss import weighted_error_sum
from efficient_mae.methods.mae.layout import CrossLayout, DecoderLayout, MaskLayout


def decode_in_parts(
    decode: Callable[[Tensor, DecoderLayout | CrossLayout], Tensor],
    parameters: Sequence[nn.Parameter],
    latent: Float[Tensor, "B ..."],
    target: Float[Tensor, "T X"],
    layout: MaskLayout,
) -> tuple[Float[Tensor, ""], Float[Tensor, "T X"], Float[Tensor, " T"]]:
    """The weighted sum of the predicted patches' errors, the predictions and the errors; the sum has a gradient.

    Args:
        decode: predictions from what is known of some images, and their layout.
        parameters: that it uses and that want a gradient.
        latent: what `decode` is given of each image.
        target: of the predictions.
        layout: in parts.
    """
    return _InParts.apply(decode, target, layout, latent, *parameters)  # pyright: ignore[reportReturnType]


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        decode: Callable[[Tensor, DecoderLayout | CrossLayout], Tensor],
        target: Tensor,
        layout: MaskLayout,
        latent: Tensor,
        *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor, Tensor]:
        targets = [len(part.ids_predict) for part in layout.parts]
        pieces = latent.split([part.num_images for part in layout.parts])
        cut = zip(layout.parts, pieces, target.split(targets), layout.weights.split(targets), strict=True)
        whole, grad_latent, grads, predictions, errors = target.new_zeros(()), [], [], [], []
        for part, piece, truth, weights in cut:
            if not len(truth):
                grad_latent.append(torch.zeros_like(piece))
                continue
            piece = piece.detach().requires_grad_()
            with torch.enable_grad():
                predicted = decode(piece, part)
                total, error = weighted_error_sum(predicted, truth, weights)
            with torch.autocast(latent.device.type, enabled=False):  # as a backward pass is computed elsewhere
                grad_piece, *found = torch.autograd.grad(total, [piece, *parameters])
            grads = [grad.add_(more) for grad, more in zip(grads, found, strict=True)] if grads else found
            del found  # the next part's need room
            whole += total.detach()
            grad_latent.append(grad_piece)
            predictions.append(predicted.detach())
            errors.append(error.detach())
        prediction = torch.cat(predictions or [torch.empty_like(target)])
        patch_loss = torch.cat(errors or [target.new_empty(0)])
        grads = grads or [torch.zeros_like(parameter) for parameter in parameters]
        ctx.grads = [torch.cat(grad_latent), *grads]
        ctx.mark_non_differentiable(prediction, patch_loss)
        return whole, prediction, patch_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads, ctx.grads = ctx.grads, None  # the factor is put in where they lie: they serve once
        return None, None, None, *(grad.mul_(factors[0]) for grad in grads)
