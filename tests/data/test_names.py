import os
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_mae.data.names import MAX_CLASSES, PackedNames, numbered_classes, printable


@given(st.lists(st.binary(max_size=12)))
def test_packed_names_are_a_list(names):
    packed = pickle.loads(pickle.dumps(PackedNames(names)))
    assert [packed[i] for i in range(len(packed))] == names
    for beyond in (len(names), -1):
        with pytest.raises(IndexError):
            packed[beyond]


def test_packed_names_take_little_more_than_their_bytes():
    tracemalloc.start()
    packed = PackedNames(b"class/image%09d.jpg" % number for number in range(20_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 20_000
    assert size < 20_000 * (24 + 8) * 1.2


@given(st.binary())
def test_printable_is_one_line_of_text(name):
    for given_name in (name, os.fsdecode(name)):
        text = printable(given_name)
        assert text.isprintable()
        text.encode("utf-8")


def test_printable_keeps_what_can_be_read():
    assert printable("Grüße aus 東京 .jpg") == "Grüße aus 東京 .jpg"
    assert printable(b"a\nb\xff.jpg") == "a\\nb\\xff.jpg"


def test_numbered_classes():
    assert numbered_classes(2) == ("0", "1", "2")
    assert numbered_classes(-1) is None
    assert numbered_classes(MAX_CLASSES) is None
