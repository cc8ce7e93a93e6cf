"""The bundled sample is what it says, and the full data set is found, fetched or asked for."""

import gzip
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from efficient_mae.data import open_source
from efficient_mae.data.sources import fashion_mnist
from efficient_mae.data.sources.fashion_mnist import DEBIAN_FOLDER, SAMPLE_FILE, read_idx
from efficient_mae.errors import InputError

installed = pytest.mark.skipif(
    not (DEBIAN_FOLDER / "train-images-idx3-ubyte.gz").exists(), reason="dataset-fashion-mnist is not installed"
)
FILES = {
    "train-images-idx3-ubyte.gz": (0x803, (3, 28, 28)),
    "train-labels-idx1-ubyte.gz": (0x801, (3,)),
    "t10k-images-idx3-ubyte.gz": (0x803, (2, 28, 28)),
    "t10k-labels-idx1-ubyte.gz": (0x801, (2,)),
}


def put_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (magic, shape) in FILES.items():
        header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
        (folder / name).write_bytes(gzip.compress(header + bytes(i % 10 for i in range(int(np.prod(shape))))))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without Fashion-MNIST; its data folder."""
    monkeypatch.setenv("EMAE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "data"


@pytest.mark.parametrize("split, per_class", [("train", 1000), ("test", 200)])
def test_sample_is_balanced(split, per_class):
    source = open_source("fashion-mnist-sample", split)
    assert len(source) == 10 * per_class
    assert source.classes is not None and len(source.classes) == 10
    assert np.bincount([source.label(i) for i in range(len(source))]).tolist() == [per_class] * 10
    assert (source.image(0).size, source.image(0).mode) == ((28, 28), "L")


def test_sample_is_small_and_has_its_notice():
    assert sum(file.stat().st_size for file in SAMPLE_FILE.parent.iterdir()) <= 8_000_000
    notice = (SAMPLE_FILE.parent / "NOTICE").read_text()
    assert "MIT License" in notice and "Zalando SE" in notice


@installed
def test_sample_is_what_its_script_makes(tmp_path, monkeypatch):
    script = Path(__file__).parents[3] / "benchmarks" / "build_sample.py"
    monkeypatch.setattr("sys.argv", ["build_sample.py", "--out", str(tmp_path / "again.npz")])
    runpy.run_path(str(script), run_name="__main__")
    with np.load(SAMPLE_FILE) as shipped, np.load(tmp_path / "again.npz") as again:
        assert set(shipped) == set(again) == {"train_images", "train_labels", "test_images", "test_labels"}
        assert all(np.array_equal(shipped[name], again[name]) for name in shipped)


@installed
@pytest.mark.parametrize("split", ["train", "test"])
def test_full_set_holds_the_sample(split):
    full, sample = open_source("fashion-mnist", split), open_source("fashion-mnist-sample", split)
    assert len(full) == {"train": 60_000, "test": 10_000}[split]
    labels = {full.image(i).tobytes(): full.label(i) for i in range(len(full))}
    assert all(labels[sample.image(i).tobytes()] == sample.label(i) for i in range(len(sample)))


@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_own_files_are_found(nowhere, folder):
    put_files(nowhere / folder)
    train, test = open_source("fashion-mnist"), open_source("fashion-mnist", "test")
    assert (len(train), len(test)) == (3, 2)
    assert [train.label(i) for i in range(3)] == [0, 1, 2]
    assert train.image(0).getpixel((3, 0)) == 3


def test_download(nowhere, monkeypatch):
    def download(root, download):
        assert download
        put_files(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    assert len(open_source("fashion-mnist")) == 3
    assert (nowhere / "FashionMNIST").is_dir()


def test_failed_download_says_how_to_get_it(nowhere, monkeypatch):
    def download(root, download):
        raise RuntimeError("Error downloading\nx")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    with pytest.raises(InputError) as caught:
        open_source("fashion-mnist")
    message = str(caught.value)
    assert "dataset-fashion-mnist" in message and str(nowhere) in message and "\n" not in message


@pytest.mark.parametrize(
    "content",
    [
        b"not gzip",
        gzip.compress(b"short"),
        gzip.compress(struct.pack(">4I", 0x803, 3, 28, 28) + bytes(100)),
        gzip.compress(struct.pack(">2I", 0x801, 10) + bytes(10)),
        gzip.compress(struct.pack(">4I", 0x803, 1, 28, 28) + bytes(784))[:-20],
    ],
    # gzip's bytes tell the time: as names they would differ from one of two test processes to the other.
    ids=["not gzip", "too short", "too few pixels", "labels", "cut off"],
)
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.gz: .*fetch it anew"):
        read_idx(tmp_path / "a.gz", dimensions=3)
