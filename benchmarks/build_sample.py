"""Builds the Fashion-MNIST sample that ships in the package, the same bytes every time (for one version of zlib).

    python benchmarks/build_sample.py [FOLDER] [--out FILE]

FOLDER holds Fashion-MNIST's four .gz files (Debian's package dataset-fashion-mnist puts them in the default).
The sample is the first 1,000 images of each class of the training set and the first 200 of each class of the test
set (t10k), in the original order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from efficient_mae.data.sources.fashion_mnist import CLASSES, DEBIAN_FOLDER, SAMPLE_FILE, read_idx

PER_CLASS = {"train": 1000, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}


def choose(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The sample's images, uint8 (N, 28, 28), and labels, uint8 (N,)."""
    images = read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz", dimensions=1)
    first = [np.flatnonzero(labels == number)[: PER_CLASS[split]] for number in range(len(CLASSES))]
    chosen = np.sort(np.concatenate(first))
    return images[chosen], labels[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN_FOLDER)
    parser.add_argument("--out", type=Path, default=SAMPLE_FILE)
    args = parser.parse_args()
    arrays = {}
    for split in PER_CLASS:
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = choose(args.folder, split)
    np.savez_compressed(args.out, **arrays)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
