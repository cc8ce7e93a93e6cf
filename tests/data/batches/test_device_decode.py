"""Batches whose JPEGs are decoded when they are moved: the same code on a CPU and, with -m gpu, by nvJPEG."""

import io
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from efficient_mae.data import (
    DeviceDecodeDataset,
    PretrainTransform,
    Reading,
    ResumableBatchSampler,
    TrainDataset,
    make_train_loader,
    open_source,
)
from efficient_mae.data.batches import device_decode
from efficient_mae.errors import InputError

# Mean absolute differences, of 255, to the other path. On a CPU libjpeg decodes for both, and what remains is the
# reduced decoding of large images; nvJPEG rounds otherwise and smooths colours less.
NEAR = {"cpu": 1.0, "cuda": 4.0}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def photo(number: int, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
    return image.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several kinds, in turn with other formats; the seventh is cut short, the eighth damaged within."""
    path = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    for number in range(8):
        exif[0x0112] = number + 1
        photo(number, (320, 214)).save(path / f"{number}.jpg", quality=90, exif=exif)
    photo(0, (320, 214)).convert("L").save(path / "grey.jpg", quality=90)
    photo(1, (320, 214)).convert("CMYK").save(path / "ink.jpg", quality=90)
    photo(0, (320, 214)).save(path / "png.png")
    photo(1, (900, 600)).save(path / "large.jpg", quality=90, progressive=True)
    return path


def dataset(kind, folder: Path, in_chans: int = 3, **options):
    return kind(open_source(str(folder)), PretrainTransform((64, 80), Reading(in_chans)), 3, **options)


def pairs(count: int, repeats: int = 1) -> list[tuple[int, int]]:
    return [(epoch, index) for index in range(count) for epoch in range(repeats)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_it_is_the_other_path(folder: Path, device: str, in_chans: int, repeats: int):
    """The same crops of the same images, turned and mirrored alike; each image within the stated difference."""
    ours = dataset(DeviceDecodeDataset, folder, in_chans).__getitems__(pairs(12, repeats))
    assert len(ours.images) == 2 * repeats  # the PNG and the CMYK are decoded by the worker
    theirs = dataset(TrainDataset, folder, in_chans).__getitems__(pairs(12, repeats))
    moved = ours.to(device)
    assert moved.images.device.type == device and moved.images.dtype == torch.uint8
    assert moved.images.shape == theirs.images.shape and torch.equal(moved.indices.cpu(), theirs.indices)
    assert moved.damaged == []
    difference = (moved.images.cpu().float() - theirs.images.float()).abs().mean((1, 2, 3))
    assert difference.max() < NEAR[device]
    assert torch.equal(moved.to(device).images, moved.images)  # nothing is left to decode
    assert torch.equal(ours.to(device).images, moved.images)  # and it comes out the same again


def test_workers_change_nothing(folder: Path):
    data = dataset(DeviceDecodeDataset, folder)
    found = []
    for workers in (0, 2):
        sampler = ResumableBatchSampler(len(data), 4, 0, repeats=2)
        found.append(list(islice(make_train_loader(data, sampler, num_workers=workers), 4)))
    for alone, worked in zip(*found, strict=True):
        assert torch.equal(alone.files, worked.files) and alone.parts == worked.parts
        assert torch.equal(alone.to("cpu").images, worked.to("cpu").images)


def test_large_batches_are_decoded_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch):
    batch = dataset(DeviceDecodeDataset, folder).__getitems__(pairs(12))
    at_once = batch.to("cpu").images
    monkeypatch.setattr("efficient_mae.data.batches.device_decode._MOST_PIXELS", 150_000)
    assert torch.equal(batch.to("cpu").images, at_once)


def test_what_is_larger_than_allowed_is_left_to_the_workers(tmp_path: Path):
    """They decode it reduced, or refuse it."""
    photo(1, (900, 600)).save(tmp_path / "0.jpg", quality=90)
    photo(0, (320, 214)).save(tmp_path / "1.jpg", quality=90)
    transform = PretrainTransform((64, 80), Reading(3, max_megapixels=0.2), scale=(1.0, 1.0))
    batch = DeviceDecodeDataset(open_source(str(tmp_path)), transform, 3).__getitems__([(0, 0), (0, 1)])
    assert [isinstance(part, int) for part in batch.parts] == [True, False] and not batch.damaged


def damaged_jpeg(kind: str) -> bytes:
    file = io.BytesIO()
    photo(0, (320, 214)).save(file, "JPEG", quality=90)
    data = file.getvalue()
    if kind == "cut short":
        return data[: len(data) // 2]
    # The header's size and the end are right; the tables that the decoder needs are gone.
    at, scan = data.index(b"\xff\xc4"), data.index(b"\xff\xda")
    return data[: at + 4] + b"\xff" * (scan - at - 4) + data[scan:]


@pytest.mark.parametrize("device", DEVICES)
def test_damage_that_shows_only_on_the_device(folder: Path, tmp_path: Path, device: str):
    for number in (1, 2, 4):
        (tmp_path / f"{number}.jpg").write_bytes((folder / f"{number}.jpg").read_bytes())
    (tmp_path / "0.jpg").write_bytes(damaged_jpeg("cut short"))
    (tmp_path / "3.jpg").write_bytes(damaged_jpeg("within"))
    batch = dataset(DeviceDecodeDataset, tmp_path).__getitems__(pairs(5, 2))
    assert batch.indices.tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4]  # the worker replaces what it can see is damaged
    assert [Path(name).name for name, _ in batch.damaged] == ["0.jpg"]
    moved = pickle.loads(pickle.dumps(batch)).to(device)
    assert moved.indices.tolist() == [1, 1, 1, 1, 2, 2, 4, 4, 4, 4]
    assert torch.equal(moved.images[6], moved.images[8]) and torch.equal(moved.images[7], moved.images[8])
    assert [Path(name).name for name, _ in moved.damaged] == ["0.jpg", "3.jpg"]


def test_a_batch_of_nothing_but_damage_is_one_line(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(damaged_jpeg("within"))
    batch = dataset(DeviceDecodeDataset, tmp_path).__getitems__(pairs(1, 2))
    with pytest.raises(InputError, match=r"no image of a batch can be read; .*a\.jpg: "):
        batch.to("cpu")


def test_labels_follow_their_images(tmp_path: Path):
    for name, number in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        photo(number, (320, 214)).save(tmp_path / name / "good.jpg")
    (tmp_path / "a" / "bad.jpg").write_bytes(damaged_jpeg("within"))
    moved = dataset(DeviceDecodeDataset, tmp_path).__getitems__([(0, 2), (0, 0)]).to("cpu")
    assert (moved.indices.tolist(), moved.labels.tolist()) == ([2, 2], [1, 1])


def test_torchvision_decodes_when_the_stream_that_crops_is_done(monkeypatch: pytest.MonkeyPatch):
    """It decodes on another stream into memory that was just let go (pytorch/vision#9606)."""
    events: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            events.append("waited")

    def decode_jpeg(files: list[torch.Tensor], mode: object, device: torch.device) -> list[torch.Tensor]:
        events.append(f"decoded {len(files)}")
        if len(files) > 1:
            raise RuntimeError("one of them is damaged")
        return [torch.zeros(3, 8, 8, dtype=torch.uint8)]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr("torchvision.io.decode_jpeg", decode_jpeg)
    image = device_decode.CodedImage("a.jpg", 3, (8, 8), 1, [])
    files = [(image, torch.zeros(3, dtype=torch.uint8))] * 2
    crops = list(device_decode._decode_and_cut(files, (3, 8, 8), torch.device("cuda")))
    assert [tuple(crop.shape) for crop in crops] == [(0, 3, 8, 8)] * 2
    assert events == ["waited", "decoded 2", "waited", "decoded 1", "waited", "decoded 1"]
