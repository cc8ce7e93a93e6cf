"""Batches are a function of (seed, epoch, index): not of workers, processes or interruptions."""

import dataclasses
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from efficient_mae.data import (
    EvalTransform,
    OpenedImage,
    PretrainTransform,
    Reading,
    ResumableBatchSampler,
    TrainBatch,
    TrainDataset,
    UnreadableImage,
    make_eval_loader,
    make_train_loader,
    open_source,
    sample_rng,
)
from efficient_mae.errors import InputError

TRANSFORM = PretrainTransform((16, 16), Reading(1))


class Shades:
    """Images that tell their number, some of them unreadable or small."""

    def __init__(self, count, damaged=(), small=(), labelled=True):
        self.name = "shades"
        self.classes, self.why_unlabelled = (("even", "odd"), "") if labelled else (None, "shades have none")
        self.count, self.damaged, self.small = count, frozenset(damaged), frozenset(small)

    def __len__(self):
        return self.count

    def image(self, index):
        if index in self.damaged:
            raise UnreadableImage(self.sample_name(index), "damaged on purpose")
        noise = np.random.default_rng(index).integers(0, 256, (3, 30) if index in self.small else (20, 30), np.uint8)
        return Image.fromarray(noise)

    def open(self, index):
        return OpenedImage(self.image(index), self.sample_name(index))

    def label(self, index):
        return index % 2 if self.classes else None

    def sample_name(self, index):
        return f"shade {index}"


@dataclasses.dataclass
class Masks:
    noise: torch.Tensor
    order: torch.Tensor


def make_masks(noise, progress):
    return Masks(noise, noise.argsort(1))


def dataset(source=None, seed=3, **options):
    source = source or Shades(50)
    return TrainDataset(source, TRANSFORM, seed, num_patches=16, make_masks=make_masks, **options)


def batches(data, count, workers=0, start=0, seed=3, size=12, **options):
    sampler = ResumableBatchSampler(len(data), size, seed, start=start, **options)
    return list(islice(make_train_loader(data, sampler, num_workers=workers), count))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.masks.value.noise, b.masks.value.noise) and torch.equal(
            a.masks.value.order, b.masks.value.order
        )
        assert a.damaged == b.damaged


def test_workers_change_nothing():
    data = dataset(Shades(50, damaged=[3, 4, 20]))
    alone = batches(data, 10)
    for workers in (1, 2):
        assert_same(batches(data, 10, workers), alone)


@pytest.mark.parametrize("start", [2, 4, 7])
def test_resuming_continues_the_run(start):
    """Four batches an epoch: from within the first, at the boundary, within the second."""
    data = dataset()
    through = batches(data, 11)
    assert_same(batches(data, 11 - start, workers=1, start=start), through[start:])


@pytest.mark.parametrize("accum_iter, world_size", [(1, 2), (2, 1), (3, 2)])
def test_processes_and_accumulation_change_nothing(accum_iter, world_size):
    data = dataset()
    whole = batches(data, 5)
    ranks = [
        batches(data, 5 * accum_iter, accum_iter=accum_iter, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        parts = [ranks[r][step * accum_iter + a] for a in range(accum_iter) for r in range(world_size)]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
        assert torch.equal(torch.cat([part.masks.value.order for part in parts]), batch.masks.value.order)


def test_a_sample_is_a_function_of_seed_epoch_and_index():
    data = dataset()
    for number, batch in enumerate(batches(data, 6)):
        epoch = number // 4
        assert batch.images.shape == (12, 1, 16, 16) and batch.images.is_contiguous()
        assert batch.labels is not None
        for row, index in enumerate(batch.indices.tolist()):
            pixels = TRANSFORM(data.source.image(index), sample_rng(3, epoch, index, "crop"))
            assert torch.equal(batch.images[row], pixels)
            noise = sample_rng(3, epoch, index, "mask").random(16, dtype=np.float32)
            assert np.array_equal(batch.masks.value.noise[row].numpy(), noise)
            assert batch.labels[row] == index % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_open_an_image_once(workers, tmp_path):
    """Twelve crops a batch, of four images; each is as its (epoch, index) alone would be."""

    class Counting(Shades):
        def open(self, index):
            with (tmp_path / "opened").open("a") as log:
                log.write(f"{index}\n")
            return super().open(index)

    data = dataset(Counting(36, damaged=[7]))
    found = batches(data, 9, workers, repeats=3)[:9]
    opened = (tmp_path / "opened").read_text().split()
    assert workers or len(opened) == 9 * 4 + 1
    pairs = islice(ResumableBatchSampler(36, 12, 3, repeats=3), 9)
    singly = [[dataset(Shades(36, damaged=[7]))[pair] for pair in batch] for batch in pairs]
    for batch, singles in zip(found, singly):
        assert torch.equal(batch.images, torch.cat([single.images for single in singles]))
        assert torch.equal(batch.indices, torch.cat([single.indices for single in singles]))
        assert torch.equal(batch.masks.value.noise, torch.cat([single.masks.value.noise for single in singles]))
        assert batch.labels.tolist() == [index % 2 for index in batch.indices.tolist()]


def test_seeds_and_epochs_differ():
    data = dataset()
    first = data.__getitems__([(0, 1), (1, 1)])
    assert not torch.equal(first.images[0], first.images[1])
    assert not torch.equal(first.masks.value.noise[0], first.masks.value.noise[1])
    assert not torch.equal(first.images, dataset(seed=4).__getitems__([(0, 1), (1, 1)]).images)


@pytest.mark.parametrize(("epochs", "progress"), [(9, [0.5, 0.5, 1.0]), (5, [1.0, 1.0, 1.0]), (1, [1.0, 1.0, 1.0])])
def test_masks_are_made_once_a_batch(epochs: int, progress: list[float]):
    calls = []
    masks = {"num_patches": 5, "make_masks": lambda *made_of: calls.append(made_of), "epochs": epochs}
    data = TrainDataset(Shades(9), TRANSFORM, 0, **masks)
    data.__getitems__([(4, 1), (4, 2), (8, 2)])
    assert [(noise.shape, made_at.tolist()) for noise, made_at in calls] == [((3, 5), progress)]


def test_masks_and_labels_may_be_missing():
    batch = TrainDataset(Shades(9, labelled=False), TRANSFORM, 0)[(0, 1)]
    assert batch.masks is None and batch.labels is None
    with pytest.raises(ValueError, match="go together"):
        TrainDataset(Shades(9), TRANSFORM, 0, num_patches=4)


def test_unreadable_images_are_replaced_and_named():
    data = dataset(Shades(10, damaged=[2, 3, 9], small=[5]), min_size=4)
    batch = data.__getitems__([(1, 2), (1, 3), (1, 5), (1, 7), (1, 9)])
    assert batch.indices.tolist() == [4, 4, 6, 7, 0]
    assert batch.labels is not None and batch.labels.tolist() == [0, 0, 0, 1, 0]
    assert batch.damaged == [
        ("shade 2", "damaged on purpose"),
        ("shade 3", "damaged on purpose"),
        ("shade 5", "30 x 3 pixels, smaller than a patch of 4"),
        ("shade 9", "damaged on purpose"),
    ]
    # the replacement is cropped and masked as the image that it stands for
    assert torch.equal(batch.images[0], TRANSFORM(data.source.image(4), sample_rng(3, 1, 2, "crop")))
    assert batch.masks.value.noise[0, 0] == sample_rng(3, 1, 2, "mask").random(dtype=np.float32)
    assert data.__getitems__([(0, 5)]).indices.tolist() == [6]
    assert dataset(Shades(10, small=[5])).__getitems__([(0, 5)]).indices.tolist() == [5]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_line(workers):
    data = dataset(Shades(300, damaged=range(300)))
    message = ""
    try:  # pytest.raises would keep the loader alive, to be ended by the garbage collector, which takes torch 5 s
        batches(data, 1, workers)
    except InputError as error:
        message = str(error)
    assert message.startswith("data=shades: no readable image among 101 of 300 looked at; shade ")
    assert "damaged on purpose" in message and "\n" not in message


def test_a_hundred_damaged_in_a_row_are_survived():
    data = dataset(Shades(300, damaged=range(100, 200)))
    batch = data.__getitems__([(0, 100)])
    assert batch.indices.tolist() == [200] and len(batch.damaged) == 100


def test_other_errors_are_not_taken_for_damage():
    class Broken(Shades):
        def image(self, index):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        batches(dataset(Broken(20)), 1)


def test_pinning_reaches_everything_that_can_be_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self.shape), self)[1])
    batch = dataset(Shades(9))[(0, 1)]
    result = batch.pin_memory()
    assert isinstance(result, TrainBatch)
    assert pinned == [(1, 1, 16, 16), (1,), (1,), batch.masks.buffer.shape]
    assert result.damaged == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_runs_own_random_numbers_are_left_alone(workers):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches(dataset(), 3, workers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_dataset_can_be_sent_to_a_spawned_worker():
    data = pickle.loads(pickle.dumps(dataset()))
    assert_same([data.__getitems__([(0, 1)])], [dataset().__getitems__([(0, 1)])])


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader_gives_all_readable_images_in_order(workers):
    source = Shades(23, damaged=[4, 8, 9, 10, 11, 22], small=[3])
    transform = EvalTransform((16, 16), Reading(1))
    loader = make_eval_loader(source, transform, 4, workers, min_size=4)
    for _ in range(2):
        found = list(loader)
        indices = torch.cat([batch.indices for batch in found]).tolist()
        assert indices == [i for i in range(23) if i not in (3, 4, 8, 9, 10, 11, 22)]
        images, labels = torch.cat([b.images for b in found]), torch.cat([b.labels for b in found])
        assert labels.tolist() == [i % 2 for i in indices]
        assert all(torch.equal(images[row], transform(source.image(i))) for row, i in enumerate(indices))
        assert [name for batch in found for name, _ in batch.damaged] == [
            f"shade {i}" for i in (3, 4, 8, 9, 10, 11, 22)
        ]
        assert found[2].images.shape == (0, 1, 16, 16)


def test_eval_loader_of_unlabelled_images():
    assert (
        next(iter(make_eval_loader(Shades(3, labelled=False), EvalTransform((8, 8), Reading(3)), 2))).labels is None
    )


def test_missing_labels_are_minus_one():
    class Partly(Shades):
        def label(self, index):
            return None if index == 1 else 0

    batch = next(iter(make_eval_loader(Partly(3), EvalTransform((8, 8), Reading(1)), 3)))
    assert batch.labels.tolist() == [0, -1, 0]


def test_bundled_sample_end_to_end():
    data = TrainDataset(open_source("fashion-mnist-sample"), PretrainTransform((28, 28), Reading(1)), 0)
    sampler = ResumableBatchSampler(len(data), 256, 0)
    batch = next(iter(make_train_loader(data, sampler, num_workers=1)))
    assert batch.images.shape == (256, 1, 28, 28) and batch.images.float().std() > 50
    assert len(set(batch.labels.tolist())) == 10 and not batch.damaged
