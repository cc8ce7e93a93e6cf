import os
import pickle
import tracemalloc
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from efficient_mae.console import printable
from efficient_mae.data.sources.names import MAX_CLASSES, PackedNames, classes_of
from tests.processes import imported


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


def _own_memory(names: PackedNames, every: int, result) -> None:
    """Put the bytes that this process has for itself, after reading names, and how long they were."""
    length = sum(len(names[number]) for number in range(0, len(names), every))
    result.put((own_bytes(), length))


def own_bytes() -> int:
    fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines())
    return sum(int(parts[1]) * 1024 for parts in fields if parts[0] in ("Private_Clean:", "Private_Dirty:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel doesn't tell")
@pytest.mark.parametrize(
    "context", [torch.multiprocessing.get_context("fork"), imported()], ids=["fork", "forkserver"]
)
def test_worker_processes_share_the_names(context: BaseContext):
    """60 MB of names cost a worker that reads in every page of them next to nothing of its own."""
    many = PackedNames(b"folder/%025d.jpg" % number for number in range(1_400_000))
    results = []
    for names in (PackedNames([b"one"]), many):
        results.append(context.SimpleQueue())
        context.Process(target=_own_memory, args=(names, 50, results[-1]), daemon=True).start()
    found = [result.get() for result in results]
    assert found[1][1] == 28_000 * 36
    assert found[1][0] - found[0][0] < 15e6


@given(st.binary())
def test_printable_is_one_line_of_text(name):
    for given_name in (name, os.fsdecode(name)):
        text = printable(given_name)
        assert text.isprintable()
        text.encode("utf-8")


def test_printable_keeps_what_can_be_read():
    assert printable("Grüße aus 東京 .jpg") == "Grüße aus 東京 .jpg"
    assert printable(b"a\nb\xff.jpg") == "a\\nb\\xff.jpg"


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["2", "0", "1"], ("0", "1", "2"), [2, 0, 1]),
        (["10", "9", "1", "-1"], ("1", "9", "10"), [2, 1, 0, -1]),
        (["07", "7", "8"], ("7", "8"), [0, 0, 1]),
        (["dog", "cat", ""], ("cat", "dog"), [1, 0, -1]),
        (["caf\u00e9", "cafe\u0301", "tea"], ("caf\u00e9", "tea"), [0, 0, 1]),
        (["1", "2", "damage"], ("1", "2"), [0, 1, -1]),
        (["a", "b", "7"], ("a", "b"), [0, 1, -1]),
        (["1", str(MAX_CLASSES), "9" * 5000], ("1",), [0, -1, -1]),
        (["False", "True"], ("False", "True"), [0, 1]),
        (["-1"], None, [-1]),
        ([], None, []),
    ],
)
def test_classes_are_what_occurs(labels: list[str], classes: tuple[str, ...] | None, numbers: list[int]):
    found = classes_of(labels)
    assert (found[0], found[1].tolist()) == (classes, numbers)


def test_labels_that_number_the_images_are_no_classes():
    assert classes_of(map(str, range(MAX_CLASSES)))[0] is not None
    assert classes_of(f"caption {number}" for number in range(MAX_CLASSES + 1))[0] is None
