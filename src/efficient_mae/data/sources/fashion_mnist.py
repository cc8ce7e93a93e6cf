"""Fashion-MNIST: 28 x 28 grey pictures of clothes in ten classes; a sample of it ships with the package.

The data are Zalando Research's, under the MIT licence (sample/NOTICE).
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from efficient_mae.data.images.decode import OpenedImage
from efficient_mae.errors import InputError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SAMPLE_FILE = Path(__file__).parents[1] / "sample" / "fashion_mnist_sample.npz"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}


class ArraySource:
    """Grey images that lie in memory; every one is readable.

    Args:
        name: what to call the data set.
        classes: the classes' names.
        images: uint8 (N, H, W).
        labels: integers (N,), indices into `classes`.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        images: UInt8[np.ndarray, "N H W"],
        labels: Integer[np.ndarray, " N"],
    ) -> None:
        self.name = name
        self.classes: tuple[str, ...] | None = classes
        self.why_unlabelled = ""
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def open(self, index: int) -> OpenedImage:
        return OpenedImage(self.image(index), self.sample_name(index))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def sample_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_sample(split: str) -> ArraySource:
    """The bundled sample: 10,000 training images, 1,000 a class, or 2,000 held-out ones, 200 a class."""
    with np.load(SAMPLE_FILE, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return ArraySource(f"fashion-mnist-sample {split}", CLASSES, images, labels)


def open_full(split: str) -> ArraySource:
    """All of Fashion-MNIST: 60,000 training or 10,000 held-out images.

    Its four files are looked for in $EMAE_DATA_DIR, ~/.cache/efficient_mae and Debian's folder, and downloaded to
    the first of these that applies if they are in none.

    Raises:
        InputError: it is nowhere and cannot be downloaded, or a file is damaged.
    """
    folder = _find_folder() or _download()
    images = read_idx(folder / f"{_PREFIX[split]}-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(folder / f"{_PREFIX[split]}-labels-idx1-ubyte.gz", dimensions=1)
    return ArraySource(f"fashion-mnist {split}", CLASSES, images, labels)


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "*axes"]:
    """The array in a gzipped file of the MNIST family's idx format (unsigned bytes, `dimensions` axes).

    Raises:
        InputError: the file cannot be read as one.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}; fetch it anew") from None
    start = 4 + 4 * dimensions
    # 8: the format's code for unsigned bytes.
    if data[:4] == bytes((0, 0, 8, dimensions)) and len(data) >= start:
        shape = np.frombuffer(data[4:start], ">u4").tolist()
        values = np.frombuffer(data[start:], np.uint8)
        if values.size == math.prod(shape):
            return values.reshape(shape)
    raise InputError(f"{path}: not an idx file of {dimensions} dimensions, or cut short; fetch it anew")


def _own_folder() -> Path:
    return Path(os.environ.get("EMAE_DATA_DIR") or Path.home() / ".cache" / "efficient_mae").expanduser()


def _find_folder() -> Path | None:
    """The first folder that holds all four files, as Debian, Zalando or torchvision lay them out."""
    bases = (_own_folder(), Path.home() / ".cache" / "efficient_mae", DEBIAN_FOLDER)
    files = [f"{p}-{kind}-ubyte.gz" for p in _PREFIX.values() for kind in ("images-idx3", "labels-idx1")]
    for base in bases:
        for folder in (base, base / "fashion-mnist", base / "FashionMNIST" / "raw"):
            if all((folder / file).is_file() for file in files):
                return folder
    return None


def _download() -> Path:
    from torchvision.datasets import FashionMNIST

    root = _own_folder()
    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"fashion-mnist is not installed and could not be downloaded ({reason}): install Debian's package "
            f"dataset-fashion-mnist, or put its four .gz files in {root}"
        ) from None
    return root / "FashionMNIST" / "raw"
