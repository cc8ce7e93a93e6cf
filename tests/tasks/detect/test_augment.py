"""What is made of an image and its objects stays together."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from efficient_mae.data import Reading, sample_rng
from efficient_mae.tasks.detect.augment import DetectDataset, JudgedDataset, LargeScaleJitter
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.data import CocoData, open_coco

from .conftest import COLOURS

MEAN = (0.5, 0.4, 0.3)


@pytest.fixture(scope="module")
def data(shapes: Path) -> CocoData:
    return open_coco(DetectConfig(data=str(shapes), out="nowhere", from_scratch=True))


def jitter(scale: tuple[float, float] = (0.3, 2.0), img_size: tuple[int, int] = (64, 52)) -> LargeScaleJitter:
    return LargeScaleJitter(img_size, Reading(3), MEAN, scale, hflip=True)


def test_boxes_and_masks_are_where_the_objects_are(data: CocoData):
    """An object's colour is where its mask is, nowhere near beside it, and its box is as small as can be."""
    transform, seen, alone, filled = jitter(), 0, 0, 0
    fill = torch.tensor([round(255 * one) for one in MEAN], dtype=torch.uint8)[:, None, None]
    for number in range(len(data.train)):
        image, target = transform(
            data.train.open(number), data.train.objects(number), sample_rng(0, 0, number, "crop")
        )
        assert image.shape == (3, 64, 52) and image.dtype == torch.uint8
        height, width = target.size
        beyond = image.clone()
        beyond[:, :height, :width] = fill
        assert (beyond == fill).all()
        filled += target.size != (64, 52)
        masks = target.masks(52)
        assert (
            masks.shape == (len(target.labels), 64, 52)
            and not masks[:, height:].any()
            and not masks[..., width:].any()
        )
        for place, (box, label) in enumerate(zip(target.boxes, target.labels.tolist(), strict=True)):
            mask = masks[place].bool()
            rows, columns = mask.nonzero().T
            tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (box - tight).abs().max() <= 1.01
            others = masks[torch.arange(len(masks)) != place].bool().any(0)
            if mask.sum() > 60 and not (mask & others).any():
                colour = image[:, mask].float().mean(1)
                assert (colour - torch.from_numpy(COLOURS[label - 1])).abs().max() < 35
                alone += 1
            seen += 1
    assert seen > 16 and alone > 6 and 0 < filled < 16


def test_it_is_the_same_whoever_makes_it(data: CocoData):
    dataset = DetectDataset(data.train, jitter(), seed=3, min_size=4)
    state = torch.get_rng_state()
    together = dataset.__getitems__([(0, 5), (1, 5), (0, 2)])
    assert torch.equal(state, torch.get_rng_state())
    assert together.targets is not None and together.indices.tolist() == [5, 5, 2]
    for place, pair in enumerate([(0, 5), (1, 5), (0, 2)]):
        alone = dataset[pair]
        assert alone.targets is not None and torch.equal(alone.images[0], together.images[place])
        for name in ("boxes", "labels", "packed"):
            one, other = (getattr(batch.targets.value[at], name) for batch, at in ((alone, 0), (together, place)))
            assert torch.equal(one, other)
    assert not torch.equal(together.images[0], together.images[1])


def test_groups_are_not_learned(data: CocoData):
    group = data.test.objects(1)
    assert group.crowd.sum() == 1
    _, target = jitter((1.0, 1.0), (64, 64))(data.test.open(1), group, sample_rng(0, 0, 1, "crop"))
    assert len(target.labels) == (~group.crowd).sum()


def test_an_image_that_cannot_be_read_is_replaced_with_its_objects(data: CocoData, shapes: Path, tmp_path: Path):
    shutil.copytree(shapes, tmp_path / "data")
    (tmp_path / "data" / "train2017" / "000004.png").write_bytes(b"no image")
    torn = open_coco(DetectConfig(data=str(tmp_path / "data"), out="nowhere", from_scratch=True)).train
    batch = DetectDataset(torn, jitter(), seed=0, min_size=4)[0, 4]
    assert batch.indices.tolist() == [5] and batch.targets is not None
    assert [Path(name).name for name, _ in batch.damaged] == ["000004.png"]
    assert set(batch.targets.value[0].labels.tolist()) <= set((torn.objects(5).labels + 1).tolist())


def test_judged_images_just_fit(data: CocoData):
    batch = JudgedDataset(data.test, (32, 48), Reading(3), MEAN, 1).__getitems__([0, 1])
    assert batch.sizes == [(32, 24), (32, 32)] and batch.own_sizes == [(64, 48), (64, 64)]
    assert batch.images.shape == (2, 3, 32, 48)
    image = torch.from_numpy(np.asarray(data.test.image(1)).copy()).permute(2, 0, 1).float()
    halved = torch.nn.functional.avg_pool2d(image, 2)
    assert (batch.images[1, :, 2:30, 2:30] - halved[:, 2:30, 2:30]).abs().mean() < 8
