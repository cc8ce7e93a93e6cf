"""An encoder for images of another size, aspect ratio, patch size or number of channels.

P patch size, C channels, D width.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from efficient_mae.backbones import VisionTransformer
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.errors import InputError
from efficient_mae.interop.files import encoder_arguments
from efficient_mae.interop.headers import ImageStatistics
from efficient_mae.methods import Method, backbone_of

CHANNELS = ("mean", "repeat", "first")


@torch_seeded(0)
def adapt_encoder(
    model: Method | VisionTransformer,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    channels: str | None = None,
) -> VisionTransformer:
    """The encoder alone, its weights copied and adapted to other images.

    Positions are interpolated in 2-D (bicubic, antialiased, as timm does), also where the table is the fixed
    sine-cosine one of its grid and could be computed afresh: trained features expect the same coordinates at the
    same place of the picture, so the table stretches with it. The patch embedding is resampled by FlexiViT's
    pseudo-inverse resize: tokens of a resized image stay what they were.

    Args:
        model: an encoder or a whole model.
        img_size: pixels, one number or (height, width); None keeps it.
        patch_size: in pixels; divides the image; None keeps it.
        in_chans: channels; None keeps them.
        channels: what becomes of the patch embedding's weights if the number of channels changes. `mean`: each new
            channel gets the mean of the old ones, times old / new. `repeat`: the old ones in turn, times
            old / new. `first`: the first ones unchanged, nothing (zeros) for channels beyond them. With `mean`,
            an image whose channels are all alike keeps its tokens.

    Raises:
        InputError: the patch size does not divide the image, or the number of channels changes without `channels`.

    Source: Beyer et al. 2023, FlexiViT, Sec. 3.4, for the patch embedding.
    """
    changed = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
    encoder = backbone_of(model)
    arguments = encoder_arguments(encoder) | {name: value for name, value in changed.items() if value is not None}
    adapted = VisionTransformer(**arguments).to(encoder.cls_token)
    weights = encoder.state_dict()
    weights["pos_embed"] = resample_abs_pos_embed(
        weights["pos_embed"], new_size=list(adapted.grid_size), old_size=list(encoder.grid_size)
    )
    kernel = adapt_channels(weights["patch_embed.proj.weight"], adapted.in_chans, channels)
    weights["patch_embed.proj.weight"] = resample_patch_embed(kernel, [adapted.patch_size] * 2)
    adapted.load_state_dict(weights)
    return adapted.train(model.training)


def adapt_channels(
    weight: Float[Tensor, "D C P P"], in_chans: int, channels: str | None
) -> Float[Tensor, "D new_channels P P"]:
    """The patch embedding's weights for another number of channels; see :func:`adapt_encoder`.

    Raises:
        InputError: the number changes and `channels` isn't one of the choices.
    """
    old = weight.shape[1]
    if channels not in (None, *CHANNELS):
        raise InputError(f"channels={channels!r}: must be one of {', '.join(CHANNELS)}")
    if in_chans == old:
        return weight
    if channels is None:
        raise InputError(
            f"in_chans={in_chans}, but the weights are for {old} channels: say what becomes of them by "
            "channels=mean (each new channel gets their mean), repeat (they take turns) or first (zeros beyond them)"
        )
    if channels == "mean":
        return weight.mean(dim=1, keepdim=True).expand(-1, in_chans, -1, -1) * (old / in_chans)
    if channels == "repeat":
        return weight[:, torch.arange(in_chans) % old] * (old / in_chans)
    kept = weight[:, :in_chans]
    return torch.cat([kept, kept.new_zeros(len(kept), in_chans - kept.shape[1], *kept.shape[2:])], dim=1)


def adapt_statistics(statistics: ImageStatistics, in_chans: int, channels: str | None) -> ImageStatistics:
    """Mean and standard deviation by channel that go with the weights of :func:`adapt_channels`.

    A channel whose weights are a mean, or zero, takes the mean of the old channels' numbers. Bands, and ranges for
    each of them, are of other images than those of another number of channels.
    """
    if len(statistics.mean) == in_chans:
        return statistics
    common = statistics.value_range if len(statistics.value_range or ()) == 2 else None

    def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
        mean = sum(values) / len(values)
        if channels == "repeat":
            return tuple(values[channel % len(values)] for channel in range(in_chans))
        kept = values[:in_chans] if channels == "first" else ()
        return kept + (mean,) * (in_chans - len(kept))

    channelwise = {"mean": adapt(statistics.mean), "std": adapt(statistics.std)}
    return replace(statistics, **channelwise, bands=None, value_range=common)
