"""The packed layout of a batch: which tokens exist, and where each lies in the decoder's packed sequences.

The decoder's sequences differ in length, since every image keeps another number of targets. They are packed one
behind another, without padding. All of it follows from the mask, so it is computed with the batch, on the host,
and a training step has nothing left to ask the device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.errors import InputError
from efficient_mae.flat import Flat


@dataclass(frozen=True)
class DecoderLayout:
    """The packed decoder sequences of some images.

    A sequence is an image's class token, its V visible patches, then its predicted patches, each group in row-major
    order. The shortest sequence comes first, so that those of one length lie together.

    Attributes:
        ids_predict: the T predicted patches, as indices into these images' patches, ascending.
        tokens: the sequences.
        targets: the predicted patches' own sequences, in the same order: the queries of the last decoder block.
        positions_encoded: rows of the images' (1 + V) tokens in a table that starts with the class token.
        sources: of each packed row, the row in a table of the images' (1 + V) tokens, then N hidden patches.
        rows_encoded: their packed rows.
        rows_predict: packed rows of the T predicted patches, ascending.
        order_predict: where among `rows_predict` each of `ids_predict` is.
    """

    ids_predict: Int64[Tensor, " T"]
    tokens: Sequences
    targets: Sequences
    positions_encoded: Int64[Tensor, " encoded"]
    sources: Int64[Tensor, " S"]
    rows_encoded: Int64[Tensor, " encoded"]
    rows_predict: Int64[Tensor, " T"]
    order_predict: Int64[Tensor, " T"]

    @property
    def num_images(self) -> int:
        """How many images these are."""
        return len(self.tokens.lengths)


@dataclass(frozen=True)
class CrossLayout:
    """The packed sequences of some images for a decoder in which predicted patches attend to encoded tokens alone.

    A sequence is an image's predicted patches in row-major order; the shortest comes first.

    Attributes:
        ids_predict: the T predicted patches, as indices into these images' patches, ascending.
        tokens: the sequences.
        encoded: the images' sequences of 1 + V encoded tokens, in the same order.
        order_images: the image of each sequence.
        sources: of each packed row, its patch.
        order_predict: the packed row of each of `ids_predict`.
    """

    ids_predict: Int64[Tensor, " T"]
    tokens: Sequences
    encoded: Sequences
    order_images: Int64[Tensor, " B"]
    sources: Int64[Tensor, " T"]
    order_predict: Int64[Tensor, " T"]

    @property
    def num_images(self) -> int:
        """How many images these are."""
        return len(self.tokens.lengths)


@dataclass(frozen=True)
class MaskLayout:
    """A batch's masks, their difficulties, and the packed decoder sequences that follow from them.

    Attributes:
        mask: True = masked.
        difficulty: of each masked patch, 0 where visible.
        predicted: the masked patches that the decoder reconstructs.
        ids_keep: the visible patches of each image, ascending.
        ids_predict: the T predicted patches, as indices into the B * N patches, ascending.
        weights: of the predicted patches in the loss.
        parts: of consecutive images; the decoder takes one after another.
    """

    mask: Bool[Tensor, "B H W"]
    difficulty: Float[Tensor, "B H W"]
    predicted: Bool[Tensor, "B H W"]
    ids_keep: Int64[Tensor, "B V"]
    ids_predict: Int64[Tensor, " T"]
    weights: Float[Tensor, " T"]
    parts: tuple[DecoderLayout, ...] | tuple[CrossLayout, ...]

    @property
    def images(self) -> Int64[Tensor, " T"]:
        """The image that each predicted patch belongs to."""
        return self.ids_predict // self.mask[0].numel()

    def to(self, device: torch.device | str) -> "MaskLayout":
        """The same on a device; the lengths of sequences stay on the host."""
        device = torch.device(device)
        return self if self.mask.device == device else Flat.of(self).to(device, non_blocking=True).value


def build_layout(
    mask: Bool[Tensor, "B H W"],
    difficulty: Float[Tensor, "B H W"],
    predicted: Bool[Tensor, "B H W"],
    weights: Float[Tensor, "B H W"],
    part_size: int | None = None,
    decoder: str = "self",
) -> MaskLayout:
    """Lay out a batch whose masks, difficulties, targets and their weights are known.

    Args:
        part_size: cut the batch into as many parts of this many images as it fills, so that none is smaller; None
            leaves it whole.
        decoder: one of :data:`DECODERS`.

    Raises:
        InputError: images with different numbers of visible patches.
    """
    images = len(mask)
    visible = ~mask.flatten(1)
    counts = visible.sum(dim=1)
    if int(counts.min()) != int(counts.max()):
        raise InputError(
            f"mask leaves between {int(counts.min())} and {int(counts.max())} patches visible: "
            "every image of a batch must keep the same number"
        )
    ids_keep = visible.nonzero()[:, 1].view(images, -1)
    ids_predict = predicted.flatten().nonzero()[:, 0]
    count = 1 if part_size is None else max(1, images // part_size)
    pairs = zip(ids_keep.tensor_split(count), predicted.flatten(1).tensor_split(count), strict=True)
    return MaskLayout(
        mask=mask,
        difficulty=difficulty,
        predicted=predicted,
        ids_keep=ids_keep,
        ids_predict=ids_predict,
        weights=weights[predicted],
        parts=tuple(DECODERS[decoder](*pair) for pair in pairs),
    )


def _decoder_layout(ids_keep: Int64[Tensor, "B V"], predicted: Bool[Tensor, "B N"]) -> DecoderLayout:
    """Pack the sequences of some images."""
    device, patches = predicted.device, predicted.shape[1]
    encoded = 1 + ids_keep.shape[1]
    ids_predict, predictions, order, order_predict = _pack_targets(predicted)
    tokens = Sequences.of(predictions + encoded, patches + 1)
    place, first = torch.empty_like(order), torch.empty_like(order)
    place[order] = torch.arange(len(order), device=device)
    first[order] = tokens.cu_seqlens[:-1].long()
    rows = order_predict + encoded * (place[ids_predict // patches] + 1)
    rows_encoded = (first[:, None] + torch.arange(encoded, device=device)).flatten()
    sources = rows.new_empty(len(rows_encoded) + len(rows))
    sources[rows_encoded] = torch.arange(len(rows_encoded), device=device)
    sources[rows] = len(rows_encoded) + ids_predict % patches
    return DecoderLayout(
        ids_predict=ids_predict,
        tokens=tokens,
        targets=Sequences.of(predictions, patches),
        positions_encoded=torch.nn.functional.pad(ids_keep + 1, (1, 0)).flatten(),
        sources=sources,
        rows_encoded=rows_encoded,
        rows_predict=torch.empty_like(rows).index_copy_(0, order_predict, rows),
        order_predict=order_predict,
    )


def _cross_layout(ids_keep: Int64[Tensor, "B V"], predicted: Bool[Tensor, "B N"]) -> CrossLayout:
    """Pack the predicted patches of some images."""
    patches, encoded = predicted.shape[1], 1 + ids_keep.shape[1]
    ids_predict, predictions, order, order_predict = _pack_targets(predicted)
    return CrossLayout(
        ids_predict=ids_predict,
        tokens=Sequences.of(predictions, patches),
        encoded=Sequences.of(torch.full_like(order, encoded), encoded),
        order_images=order,
        sources=torch.empty_like(ids_predict).index_copy_(0, order_predict, ids_predict % patches),
        order_predict=order_predict,
    )


def _pack_targets(
    predicted: Bool[Tensor, "B N"],
) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " B"], Int64[Tensor, " B"], Int64[Tensor, " T"]]:
    """The predicted patches; their number in each image, ascending; its image; and where each patch then lies."""
    ids_predict = predicted.flatten().nonzero()[:, 0]
    predictions, order = predicted.sum(dim=1).sort(stable=True)
    first = torch.empty_like(order)
    first[order] = predictions.cumsum(0) - predictions
    rank = (predicted.cumsum(dim=1) - 1).flatten()[ids_predict]
    return ids_predict, predictions, order, first[ids_predict // predicted.shape[1]] + rank


# How sequences are packed, by what predicted patches attend to: each other and the visible ones, as in the paper, or
# the visible ones alone.
DECODERS = {"self": _decoder_layout, "cross": _cross_layout}
