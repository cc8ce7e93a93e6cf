"""What is flattened is what comes out, in one tensor, wherever it goes."""

import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficient_mae.flat import Flat
from efficient_mae.methods.mae import MaskLayout, MaskPlanner

DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.float64]


@dataclass
class Held:
    tensors: tuple[torch.Tensor, ...]
    more: Any


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).to(draw(st.sampled_from(DTYPES)))
    return values.mT if len(shape) > 1 and draw(st.booleans()) else values  # whose elements don't lie in order


@given(st.lists(tensors(), max_size=6).map(tuple))
def test_what_goes_in_comes_out(held: tuple[torch.Tensor, ...]):
    flat = Flat.of({"held": [Held(held, "word")], "number": 3})
    assert flat.value is flat.value  # made once
    for one in (flat, pickle.loads(pickle.dumps(flat)), flat.to("cpu")):
        (found,) = one.value["held"]
        assert found.more == "word" and one.value["number"] == 3
        for ours, theirs in zip(found.tensors, held, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
            assert ours.untyped_storage().data_ptr() == one.buffer.untyped_storage().data_ptr()
            assert ours.storage_offset() * ours.element_size() % 64 == 0


def layout(images: int = 5) -> MaskLayout:
    noise = torch.rand(images, 64, generator=torch.Generator().manual_seed(0))
    return MaskPlanner((8, 8), 4, part_size=2)(noise)


def test_a_layout_is_one_tensor_whose_lengths_stay_on_the_host():
    moved = Flat.of(layout()).to("meta").value
    assert {part.tokens.lengths.device.type for part in moved.parts} == {"cpu"}
    assert {moved.mask.device.type, *(part.tokens.cu_seqlens.device.type for part in moved.parts)} == {"meta"}
    assert torch.equal(moved.parts[1].targets.lengths, layout().parts[1].targets.lengths)


def test_a_layout_is_moved_only_where_it_isnt():
    here = layout()
    assert here.to("cpu") is here
    assert here.to("meta").ids_keep.device.type == "meta"


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(NotImplementedError):
        Flat.of((torch.ones(1), torch.ones(1, device="meta")))
