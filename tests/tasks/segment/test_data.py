"""Label maps in the layouts and of the kinds that there are; crops of them; figures against brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score

from efficient_mae.data import Reading, open_image
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.segment.batches import SegmentTransform, resize_factor
from efficient_mae.tasks.segment.data import Labelling, MappedSource, open_mapped, read_classes
from efficient_mae.tasks.segment.evaluation import score
from efficient_mae.tasks.segment.pictures import palette
from efficient_mae.tasks.segment.sliding import Sliding

from .mapped import write_mapped


@pytest.mark.parametrize(
    "folders",
    [
        ("images/training", "annotations/training", "images/validation", "annotations/validation"),
        ("images/train", "labels/train", "images/val", "labels/val"),
        ("train/images", "train/masks", "test/images", "test/masks"),
    ],
)
def test_layouts(tmp_path: Path, folders: tuple[str, ...]):
    for folder in folders:
        (tmp_path / folder / "a").mkdir(parents=True)
        for number in range(2):
            picture = Image.new("L", (4, 3), number)
            picture.save(tmp_path / folder / "a" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    data = open_mapped(str(tmp_path), None, None, 255, False)
    assert data.classes == ("one", "two") and len(data.train) == len(data.test) == 2
    for source, folder in ((data.train, folders[1]), (data.test, folders[3])):
        assert source.map_name(1) == str(tmp_path / folder / "a" / "1.png")
        assert source.label_map(1, source.open(1), data.labelling).tolist() == [[1] * 4] * 3


@pytest.mark.parametrize("kind", ["grey", "palette", "one bit", "four bits", "two bits", "sixteen bits"])
def test_numbers_are_as_they_are_stored(tmp_path: Path, kind: str):
    numbers = np.array([[0, 1, 2], [3, 1, 0]], np.uint8)
    (tmp_path / "images").mkdir(), (tmp_path / "maps").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.jpg")
    file, picture = tmp_path / "maps" / "a.png", Image.fromarray(numbers)
    if kind == "one bit":
        numbers = numbers % 2
        Image.fromarray(numbers.astype(bool)).save(file)
    elif kind == "sixteen bits":
        numbers = numbers.astype(np.uint16) * 300
        Image.fromarray(numbers).save(file)
    elif kind in ("four bits", "two bits"):
        import struct
        import zlib

        bits = 4 if kind == "four bits" else 2
        lines = b"".join(
            b"\0"
            + int("".join(f"{n:0{bits}b}" for n in row).ljust(16, "0"), 2).to_bytes(2, "big")[: -(-3 * bits // 8)]
            for row in numbers.tolist()
        )

        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        head = struct.pack(">IIBBBBB", 3, 2, bits, 0, 0, 0, 0)
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    else:
        if kind == "palette":
            picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
        picture.save(file)
    source = MappedSource(tmp_path / "images", tmp_path / "maps", "x")
    assert (source.label_map(0, source.open(0), Labelling(1000, None, False)) == numbers).all()


def test_what_is_no_class():
    numbers = np.array([[0, 1, 255, 3]], np.uint8)
    assert Labelling(4, 255, False).classes(numbers).tolist() == [[0, 1, -1, 3]]
    assert Labelling(3, 255, True).classes(numbers).tolist() == [[-1, 0, -1, 2]]
    for labelling in (Labelling(3, 255, False), Labelling(3, None, True), Labelling(2, 255, True)):
        with pytest.raises(ValueError, match="outside the"):
            labelling.classes(numbers)


def test_lists_of_classes(tmp_path: Path):
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t9\twall\n2\t0.1\t9\t9\tsky, air\n"
    )
    assert read_classes(tmp_path, None) == ("wall", "sky, air")
    for text, what in (("a\n", "names 1 classes"), ("a\nb\na\n", "names 'a' twice"), ("", "names 0 classes")):
        (tmp_path / "own.txt").write_text(text)
        with pytest.raises(InputError, match=what):
            read_classes(tmp_path, str(tmp_path / "own.txt"))
    (tmp_path / "objectInfo150.txt").unlink()
    with pytest.raises(InputError, match=r"says no classes: it has no classes.txt; .*give --classes FILE"):
        read_classes(tmp_path, None)


def transform(**changed) -> SegmentTransform:
    given = dict(resize_range=(0.5, 2.0), class_share=0.75, hflip=True, photometric=False)
    return SegmentTransform((32, 40), Reading(3), (0.5, 0.25, 0.0), **given | changed)


def two_colours(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A picture whose colours are its labels: 40 times the number."""
    numbers = (np.arange(width)[None] * 5 // width + np.zeros((height, 1))).astype(np.int16)
    return Image.fromarray(np.repeat((numbers * 40)[..., None], 3, axis=-1).astype(np.uint8)), numbers


@pytest.mark.parametrize("size", [(60, 80), (20, 200), (16, 16)])
def test_a_crop_and_its_labels_show_the_same(size: tuple[int, int], tmp_path: Path):
    picture, numbers = two_colours(*size)
    picture.save(tmp_path / "a.png")
    make, flips = transform(), 0
    for seed in range(20):
        image = open_image((tmp_path / "a.png").read_bytes(), "a")
        pixels, labels = make(image, numbers, np.random.default_rng(seed))
        assert pixels.shape == (3, 32, 40) and labels.shape == (32, 40)
        beyond = labels == -1
        assert (pixels[:, beyond] == torch.tensor([[128], [64], [0]])).all()
        away = (pixels[0].float() / 40 - labels).abs()[~beyond]
        assert (away < 0.5).float().mean() > 0.9  # but at the borders between colours
        row = labels[0][labels[0] >= 0]
        flips += bool((row.diff() < 0).any())
    assert 3 < flips < 17


def test_no_class_takes_too_much(tmp_path: Path):
    numbers = np.zeros((100, 100), np.int16)
    numbers[:, 70:] = 1  # two crops of five, 69 of its 100 pixels wide, show a quarter of it
    numbers[:5] = -1
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    image = open_image((tmp_path / "a.png").read_bytes(), "a")
    few = {}
    for limit in (0.75, 1.0):
        make, shares = transform(class_share=limit, resize_range=(1.8, 1.8)), []
        for seed in range(60):
            _, labels = make(image, numbers, np.random.default_rng(seed))
            counts = torch.bincount(labels[labels >= 0].long(), minlength=2)
            shares.append((counts.max() / counts.sum()).item())
        few[limit] = np.mean(np.array(shares) < 0.77)
    assert few[0.75] > 0.95 and few[1.0] < 0.7


def test_distortion_is_the_samples_own_and_permutes_nothing(tmp_path: Path):
    picture, numbers = two_colours(40, 40)
    red = Image.merge("RGB", [picture.getchannel(0), Image.new("L", (40, 40), 10), Image.new("L", (40, 40), 10)])
    red.save(tmp_path / "a.png")
    make = transform(photometric=True)
    made = []
    for _ in range(2):
        made.append([])
        for seed in range(12):
            torch.rand(1)
            image = open_image((tmp_path / "a.png").read_bytes(), "a")
            made[-1].append(make(image, numbers, np.random.default_rng(seed))[0])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    means = torch.stack(made[0]).float().mean(dim=(2, 3))
    assert (means[:, 0] > means[:, 2]).all() and means[:, 0].std() > 1


def test_resizing_is_the_published_one():
    # mmcv's rescale to (2048, 512): a photograph of 640 x 480 by 512 / 480, a banner of 4000 x 400 by 2048 / 4000.
    assert resize_factor((640, 480), (512, 512)) == pytest.approx(512 / 480)
    assert resize_factor((4000, 400), (512, 512)) == pytest.approx(2048 / 4000)
    assert resize_factor((4000, 400), (512, 512), 0.5) == pytest.approx(1024 / 4000)


def test_figures_are_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, found = rng.integers(0, 5, 400), rng.integers(0, 6, 400)
        confusion = confusion_matrix(truth, found, labels=range(7))  # the last is never seen, nor taken
        made = score(confusion, 1)
        seen = list(range(5))
        iou = jaccard_score(truth, found, labels=range(6), average=None)
        assert made.iou[:6] == pytest.approx(iou, abs=1e-6) and made.iou[6] is None
        assert made.miou == pytest.approx(iou.mean(), abs=1e-6)
        recall = recall_score(truth, found, labels=seen, average=None)
        assert made.accuracy[:5] == pytest.approx(recall, abs=1e-6) and made.accuracy[5:] == [None, None]
        assert made.macc == pytest.approx(recall.mean(), abs=1e-6)
        assert made.pixel_accuracy == pytest.approx((truth == found).mean(), abs=1e-6)


def sliding(**changed) -> Sliding:
    given = dict(stride=2 / 3, flip_test=False, batch_size=2, precision="fp32", device=torch.device("cpu"))
    return Sliding((6, 6), ImageStatistics((0.0,), (1.0,)), **given | changed)


def by_position(windows: torch.Tensor) -> torch.Tensor:
    """Two classes' logits, which depend on the pixel and on the place in its window."""
    place = torch.arange(36.0).view(1, 6, 6)
    return torch.stack([windows[:, 0] * 3, windows[:, 0] + place / 36], dim=1)


@pytest.mark.parametrize("shape", [(6, 6), (13, 17), (4, 9)])
def test_windows_cover_the_image_as_in_a_plain_loop(shape: tuple[int, int]):
    pixels = torch.rand(1, *shape)
    padded = torch.zeros(1, max(6, shape[0]), max(6, shape[1]))
    padded[:, : shape[0], : shape[1]] = pixels
    total, count = torch.zeros(2, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for top in range(0, padded.shape[1], 4):
        for left in range(0, padded.shape[2], 4):
            y, x = min(top, padded.shape[1] - 6), min(left, padded.shape[2] - 6)
            if (top and top - 4 + 6 >= padded.shape[1]) or (left and left - 4 + 6 >= padded.shape[2]):
                continue  # the window before reached the end
            total[:, y : y + 6, x : x + 6] += by_position(padded[None, :, y : y + 6, x : x + 6])[0]
            count[y : y + 6, x : x + 6] += 1
    expected = (total / count)[:, : shape[0], : shape[1]]
    torch.testing.assert_close(sliding().logits(by_position, pixels), expected)
    assert torch.equal(sliding().classes(by_position, [pixels], shape).long(), expected.argmax(0))


def test_flips_and_scales_are_means_of_probabilities():
    pixels, larger = torch.rand(1, 8, 8), torch.rand(1, 12, 12)
    parts = []
    for one in (pixels, larger):
        for flip in (False, True):
            logits = sliding().logits(by_position, one.flip(-1) if flip else one)
            probabilities = (logits.flip(-1) if flip else logits).softmax(0)[None]
            parts.append(torch.nn.functional.interpolate(probabilities, (8, 8), mode="bilinear")[0])
    expected = torch.stack(parts).mean(0).argmax(0)
    found = sliding(flip_test=True).classes(by_position, [pixels, larger], (8, 8))
    assert torch.equal(found.long(), expected)


def test_many_classes_are_told_apart():
    logits = torch.randn(1, 40, 6, 6)
    found = sliding().classes(lambda _: logits, [torch.rand(1, 6, 6)], (6, 6))
    assert torch.equal(found.long(), logits[0].argmax(0))


def test_colours_are_pascals():
    assert palette(4).tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len({tuple(colour) for colour in palette(255).tolist()}) == 255


def test_held_out_images_elsewhere(tmp_path: Path):
    data = write_mapped(tmp_path / "a", 2, 1)
    other = write_mapped(tmp_path / "b", 3, 2)
    assert len(open_mapped(str(data), str(other), None, 255, True).test) == 2
    plain = tmp_path / "c"
    (plain / "images").mkdir(parents=True), (plain / "annotations").mkdir()
    for kind in ("images", "annotations"):
        (other / kind / "training" / "000.png").rename(plain / kind / "000.png")
    assert len(open_mapped(str(data), str(plain), None, 255, True).test) == 1
    with pytest.raises(InputError, match="no held-out part"):
        (data / "images" / "validation" / "000.png").unlink()
        (data / "images" / "validation").rmdir()
        open_mapped(str(data), None, None, 255, True)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_what_ails_all_label_maps_is_told_first(tmp_path: Path, part: str):
    data = write_mapped(tmp_path / "a", 12, 3)
    maps = sorted((data / "annotations" / part).glob("*.png"))
    for file in maps[1:]:
        Image.new("L", (9, 9)).save(file)
    assert len(open_mapped(str(data), None, None, 255, True).test) == 3  # the first is whole
    Image.new("L", (9, 9)).save(maps[0])
    with pytest.raises(InputError, match=rf"none of {min(8, len(maps))} images .*000.png: is 9 x 9 pixels, and"):
        open_mapped(str(data), None, None, 255, True)
