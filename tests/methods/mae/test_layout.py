"""The packed layout beside its construction token by token, in plain Python."""

import copy
import pickle
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.flat import Flat
from efficient_mae.methods.mae import CrossLayout, DecoderLayout, MaskLayout, build_layout


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Tensor]:
    """Masks with as many visible patches in every image, and any subset of the others, down to none, predicted."""
    images, rows, columns = draw(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 5)))
    patches = rows * columns
    visible = draw(st.integers(0, patches))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    mask = np.ones((images, patches), dtype=bool)
    for row in mask:
        row[rng.permutation(patches)[:visible]] = False
    predicted = mask & (rng.random(mask.shape) < share)
    weights = rng.random(mask.shape).astype(np.float32)
    named = {"mask": mask, "difficulty": weights * mask, "predicted": predicted, "weights": weights}
    return {name: torch.from_numpy(value).view(images, rows, columns) for name, value in named.items()}


def parts_of(images: int, part_size: int | None) -> list[list[int]]:
    """Consecutive images: as many parts as parts of this size are full, the earlier ones larger by one at most."""
    count = 1 if part_size is None else max(images // part_size, 1)
    sizes = [images // count + (part < images % count) for part in range(count)]
    numbers = iter(range(images))
    return [[next(numbers) for _ in range(size)] for size in sizes]


def lengths_and_bounds(lengths: list[int]) -> tuple[list[int], list[int]]:
    return lengths, [sum(lengths[:number]) for number in range(len(lengths) + 1)]


def check_part(found: DecoderLayout, mask: list[list[bool]], predicted: list[list[bool]]) -> None:
    """Against sequences that are written down token by token; a token is (image, 0 for the class, else 1 + patch)."""
    patches = len(mask[0])
    encoded, hidden = [], []
    for image in range(len(mask)):
        encoded.append([(image, 0)] + [(image, 1 + patch) for patch in range(patches) if not mask[image][patch]])
        hidden.append([(image, 1 + patch) for patch in range(patches) if predicted[image][patch]])
    order = sorted(range(len(mask)), key=lambda image: (len(hidden[image]), image))
    packed = [token for image in order for token in encoded[image] + hidden[image]]
    packed_targets = [token for image in order for token in hidden[image]]
    in_order = [token for tokens in hidden for token in tokens]

    assert found.num_images == len(mask)
    assert found.ids_predict.tolist() == [image * patches + position - 1 for image, position in in_order]
    tokens = lengths_and_bounds([len(encoded[image]) + len(hidden[image]) for image in order])
    targets = lengths_and_bounds([len(hidden[image]) for image in order])
    for sequences, (lengths, bounds), longest in (
        (found.tokens, tokens, patches + 1),
        (found.targets, targets, patches),
    ):
        assert (sequences.lengths.tolist(), sequences.cu_seqlens.tolist()) == (lengths, bounds)
        assert sequences.max_seqlen == longest and sequences.cu_seqlens.dtype == torch.int32
        assert sequences.lengths.device.type == "cpu" and lengths == sorted(lengths)
    flat = [token for tokens in encoded for token in tokens]
    assert found.positions_encoded.tolist() == [position for _, position in flat]
    assert found.rows_encoded.tolist() == [packed.index(token) for token in flat]
    assert found.rows_predict.tolist() == [packed.index(token) for token in packed_targets]
    assert all(earlier < later for earlier, later in pairwise(found.rows_predict.tolist()))
    assert found.order_predict.tolist() == [packed_targets.index(token) for token in in_order]
    # The rows of the two groups are all rows, each once.
    assert sorted([*found.rows_encoded.tolist(), *found.rows_predict.tolist()]) == list(range(len(packed)))


@settings(deadline=None, max_examples=200)
@given(batches(), st.none() | st.integers(1, 9))
def test_it_is_the_layout_that_is_written_down_token_by_token(batch: dict[str, Tensor], part_size: int | None):
    layout = build_layout(**batch, part_size=part_size)
    masks, predicted = (batch[name].flatten(1).tolist() for name in ("mask", "predicted"))
    patches = len(masks[0])
    assert layout.ids_keep.tolist() == [[patch for patch in range(patches) if not row[patch]] for row in masks]
    chosen = [(image, patch) for image, row in enumerate(predicted) for patch in range(patches) if row[patch]]
    assert layout.ids_predict.tolist() == [image * patches + patch for image, patch in chosen]
    weights = batch["weights"].flatten(1).tolist()
    assert layout.weights.tolist() == [weights[image][patch] for image, patch in chosen]
    for name in ("mask", "difficulty", "predicted"):
        assert torch.equal(getattr(layout, name), batch[name])
    parts = parts_of(len(masks), part_size)
    assert len(layout.parts) == len(parts)
    assert all(part_size is None or len(part) >= min(part_size, len(masks)) for part in parts)
    for found, images in zip(layout.parts, parts):
        check_part(found, [masks[image] for image in images], [predicted[image] for image in images])
    crossed = build_layout(**batch, part_size=part_size, decoder="cross")
    assert torch.equal(crossed.ids_predict, layout.ids_predict) and len(crossed.parts) == len(parts)
    for found, images in zip(crossed.parts, parts):
        check_cross_part(found, [masks[image] for image in images], [predicted[image] for image in images])


def check_cross_part(found: CrossLayout, mask: list[list[bool]], predicted: list[list[bool]]) -> None:
    """Against sequences that are written down token by token; a token is (image, patch)."""
    patches, images = len(mask[0]), range(len(mask))
    hidden = [[(image, patch) for patch in range(patches) if predicted[image][patch]] for image in images]
    order = sorted(images, key=lambda image: (len(hidden[image]), image))
    packed = [token for image in order for token in hidden[image]]
    in_order = [token for tokens in hidden for token in tokens]
    encoded = 1 + mask[0].count(False)

    assert found.num_images == len(mask) and found.order_images.tolist() == order
    assert found.ids_predict.tolist() == [image * patches + patch for image, patch in in_order]
    assert found.sources.tolist() == [patch for _, patch in packed]
    assert found.order_predict.tolist() == [packed.index(token) for token in in_order]
    for sequences, lengths, longest in (
        (found.tokens, [len(hidden[image]) for image in order], patches),
        (found.encoded, [encoded] * len(mask), encoded),
    ):
        assert (sequences.lengths.tolist(), sequences.cu_seqlens.tolist()) == lengths_and_bounds(lengths)
        assert sequences.max_seqlen == longest and sequences.cu_seqlens.dtype == torch.int32
        assert sequences.lengths.device.type == "cpu"


def tensors(value: MaskLayout | DecoderLayout | CrossLayout | Sequences) -> list[Tensor | int]:
    """All that a layout holds, in order."""
    held = []
    for field in fields(value):
        for one in getattr(value, field.name) if field.name == "parts" else [getattr(value, field.name)]:
            held += [one] if isinstance(one, Tensor | int) else tensors(one)
    return held


@settings(deadline=None, max_examples=50)
@given(batches(), st.integers(1, 3), st.sampled_from(["self", "cross"]))
def test_it_is_the_same_after_a_journey(batch: dict[str, Tensor], part_size: int, decoder: str):
    layout = build_layout(**batch, part_size=part_size, decoder=decoder)
    journeys = {
        "pickle": pickle.loads(pickle.dumps(layout)),
        "flat": Flat.of(layout).value,
        "flat and pickle": pickle.loads(pickle.dumps(Flat.of(layout))).value,
        "copy": copy.deepcopy(layout),
    }
    for name, arrived in journeys.items():
        for ours, theirs in zip(tensors(arrived), tensors(layout), strict=True):
            if isinstance(ours, int):
                assert ours == theirs, name
            else:
                assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    assert layout.to("cpu") is layout


@settings(deadline=None, max_examples=20)
@given(batches(), st.integers(1, 3), st.sampled_from(["self", "cross"]))
def test_lengths_stay_on_the_host(batch: dict[str, Tensor], part_size: int, decoder: str):
    layout = build_layout(**batch, part_size=part_size, decoder=decoder)
    there = layout.to("meta")
    assert there.to("meta") is there
    for ours, theirs in zip(tensors(there), tensors(layout), strict=True):
        if isinstance(theirs, Tensor):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    for moved, part in zip(there.parts, layout.parts, strict=True):
        for name in ("tokens", "targets" if decoder == "self" else "encoded"):
            ours, theirs = getattr(moved, name), getattr(part, name)
            assert ours.cu_seqlens.is_meta and torch.equal(ours.lengths, theirs.lengths)
    assert all(one.is_meta for one in (there.mask, there.weights, there.ids_keep, there.parts[-1].order_predict))


def test_images_with_other_numbers_of_visible_patches_are_refused():
    mask = torch.tensor([[[True, False, True]], [[True, False, False]]])
    with pytest.raises(ValueError, match="between 1 and 2 patches visible: every image"):
        build_layout(mask, mask.float(), mask, mask.float())
