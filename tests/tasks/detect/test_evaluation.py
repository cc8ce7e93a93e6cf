"""Average precision against pycocotools'."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as their_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.tasks.detect.annotations import Objects
from efficient_mae.tasks.detect.evaluation import Found, Precision, Scorer

CLASSES = 4
SIDE = 24


def random_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rectangles of whole pixels, so that overlaps are often just at a threshold, some with a corner missing."""
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    for mask in masks:
        (top, left), (high, wide) = rng.integers(0, SIDE - 10, 2), rng.integers(2, 11, 2)
        mask[top : top + high, left : left + wide] = 1
        if rng.random() < 0.3:
            mask[top, left] = 0
    return masks


def boxes_of(masks: np.ndarray) -> np.ndarray:
    rows = []
    for mask in masks:
        y, x = np.nonzero(mask)
        rows.append((x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def random_set(rng: np.random.Generator) -> list[tuple[Found, Objects]]:
    """Images with ties, crowds, ignored regions of all sizes, without objects, and classes without images."""
    pairs = []
    classes = rng.choice(CLASSES, size=int(rng.integers(1, CLASSES + 1)), replace=False)
    for _ in range(int(rng.integers(1, 6))):
        there = random_masks(rng, int(rng.choice([0, 1, 2, 4])))
        crowd = rng.random(len(there)) < 0.2
        # Small ones are called large here and there: the sizes by which they are sorted are the file's.
        areas = there.sum((1, 2)) * rng.choice([1.0, 30.0, 200.0], len(there))
        objects = Objects(
            (SIDE, SIDE),
            boxes_of(there),
            rng.choice(classes, len(there)).astype(np.int64),
            crowd,
            areas.astype(np.float64),
            [coded(mask) for mask in there],
        )
        near = np.roll(there, tuple(rng.integers(-1, 2, 2)), (1, 2)) if len(there) else there
        found = np.concatenate([near[rng.random(len(near)) < 0.8], random_masks(rng, int(rng.integers(0, 4)))])
        found = found[found.any((1, 2))]
        labels = rng.integers(0, CLASSES, len(found))
        labels[: len(there)] = np.where(rng.random(len(found[: len(there)])) < 0.8, classes[0], labels[: len(there)])
        # Of ten different scores, so that many are equal.
        scores = np.sort(rng.integers(1, 11, len(found)) / 10)[::-1].copy()
        pairs.append(
            (
                Found(
                    torch.from_numpy(boxes_of(found)),
                    torch.from_numpy(labels),
                    torch.from_numpy(scores),
                    torch.from_numpy(found).bool(),
                ),
                objects,
            )
        )
    return pairs


def coded(mask: np.ndarray) -> dict[str, Any]:
    code = their_mask.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def by_pycocotools(pairs: list[tuple[Found, Objects]], kind: str) -> Precision:
    annotations, results = [], []
    for image, (found, there) in enumerate(pairs, 1):
        for place in range(len(there.labels)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(there.labels[place]) + 1,
                    "bbox": there.boxes[place].tolist(),
                    "area": float(there.areas[place]),
                    "iscrowd": int(there.crowd[place]),
                    "segmentation": there.segmentations[place],
                }
            )
        for place in range(len(found.labels)):
            what = (
                {"bbox": found.boxes[place].tolist()}
                if kind == "bbox"
                else {"segmentation": coded(found.masks[place].numpy().astype(np.uint8))}
            )
            where = {"image_id": image, "category_id": int(found.labels[place]) + 1}
            results.append({**where, "score": float(found.scores[place]), **what})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image, "height": SIDE, "width": SIDE} for image in range(1, len(pairs) + 1)],
            "annotations": annotations,
            "categories": [{"id": number + 1, "name": str(number)} for number in range(CLASSES)],
        }
        truth.createIndex()
        if not results:
            guess = COCO()
            guess.dataset = {**truth.dataset, "annotations": []}
            guess.createIndex()
        else:
            guess = truth.loadRes(results)
        judge = COCOeval(truth, guess, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    values = [None if value < 0 else float(value) for value in judge.stats[:6]]
    per_class = []
    for label in range(CLASSES):
        curve = judge.eval["precision"][:, :, label, 0, -1]
        per_class.append(float(curve[curve > -1].mean()) if (curve > -1).any() else None)
    return Precision(*values, per_class=per_class)


def assert_same(ours: Precision, theirs: Precision) -> None:
    for name in ("ap", "ap50", "ap75", "small", "medium", "large"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-6), name
    for one, other in zip(ours.per_class, theirs.per_class, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def scored(pairs: list[tuple[Found, Objects]]) -> tuple[int, Precision, Precision]:
    scorer = Scorer(CLASSES)
    for found, there in pairs:
        scorer.add(found, there)
    return scorer.result(ALONE)


def test_it_is_pycocotools():
    rng = np.random.default_rng(0)
    crowds = empty = absent = 0
    for _ in range(200):
        pairs = random_set(rng)
        images, *ours = scored(pairs)
        assert images == len(pairs)
        for kind, one in zip(("bbox", "segm"), ours, strict=True):
            assert_same(one, by_pycocotools(pairs, kind))
        crowds += sum(there.crowd.any() for _, there in pairs)
        empty += sum(not len(there.labels) for _, there in pairs)
        absent += sum(one is None for one in ours[0].per_class)
    assert min(crowds, empty, absent) > 100


def test_of_more_objects_than_count():
    """COCO takes the hundred surest, and torchmetrics' figure of all is -1 where there is no hundred."""
    rng = np.random.default_rng(1)
    there = next(there for _ in range(99) for _, there in random_set(rng) if len(there.labels))
    masks = random_masks(rng, 130)
    scores = np.sort(rng.random(130))[::-1].copy()
    labels = rng.integers(0, CLASSES, 130)
    many = Found(*map(torch.from_numpy, (boxes_of(masks), labels, scores)), torch.from_numpy(masks).bool())
    _, *ours = scored([(many, there)])
    for kind, one in zip(("bbox", "segm"), ours, strict=True):
        assert_same(one, by_pycocotools([(many, there)], kind))


def test_however_many_processes_it_is_the_same():
    rng = np.random.default_rng(2)
    pairs = [pair for _ in range(4) for pair in random_set(rng)]
    whole = scored(pairs)
    states = []
    for part in (pairs[:3], pairs[3:]):
        scorer = Scorer(CLASSES)
        for found, there in part:
            scorer.add(found, there)
        states.append(scorer._metric.metric_state)

    class First(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value] if isinstance(value, tuple) else states

    scorer = Scorer(CLASSES)
    for found, there in pairs[:3]:
        scorer.add(found, there)
    assert scorer.result(First(0, 2, torch.device("cpu"))) == whole
