"""From JPEG files to a training batch on one core: this package's pipeline beside torchvision's on Pillow.

    python benchmarks/jpeg.py [--out benchmarks/results/jpeg.json]

Theirs is ImageFolder's loading and the transforms of torchvision's training references: open, convert to RGB,
RandomResizedCrop(224, scale 0.2 to 1, bicubic, antialiased), RandomHorizontalFlip, ToTensor, Normalize; images are
stacked to a batch. Ours ends in uint8, which the training device normalises; `ours_normalised` does that here too, on
the same core. `repeats_4` takes four crops of each image that is decoded, and counts crops.

The JPEGs are scikit-learn's two photographs at quality 90, 4:2:0: scaled to 500 x 375, scaled to 4000 x 3000, and, as
scaling adds no detail, tiled to 4000 x 3000 in mirror images at their own size, which makes files as large as a good
camera's. Everything is in memory and on one thread; rounds alternate; medians are reported.
"""

import argparse
import datetime
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as tv
from PIL import Image
from sklearn.datasets import load_sample_image

from efficient_mae.data import PretrainTransform, Reading, TrainDataset, default_mean_std, normalize, open_source
from efficient_mae.engine.machine.facts import describe_machine

MEAN, STD = default_mean_std(3)


def scaled(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    return photo.resize(size, Image.Resampling.BICUBIC)


def tiled(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    pixels = np.asarray(photo)
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    pixels = np.concatenate([pixels, pixels[::-1]], axis=0)
    times = -(-size[1] // pixels.shape[0]), -(-size[0] // pixels.shape[1])
    return Image.fromarray(np.tile(pixels, (*times, 1))[: size[1], : size[0]])


KINDS: dict[str, tuple[Callable[[Image.Image, tuple[int, int]], Image.Image], tuple[int, int], int]] = {
    "500 x 375": (scaled, (500, 375), 64),
    "4000 x 3000": (scaled, (4000, 3000), 4),
    "4000 x 3000, detailed": (tiled, (4000, 3000), 4),
}


def write_jpegs(folder: Path, kind: str) -> None:
    """Enough files for a batch, of both photographs in turn."""
    make, size, count = KINDS[kind]
    for part, name in enumerate(("china.jpg", "flower.jpg")):
        file = io.BytesIO()
        make(Image.fromarray(load_sample_image(name)), size).save(file, "JPEG", quality=90, subsampling="4:2:0")
        for number in range(part, count, 2):
            (folder / f"{number:02}.jpg").write_bytes(file.getvalue())


def torchvision_pipeline(files: list[Path]) -> Callable[[int], object]:
    transform = tv.Compose([
        tv.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=tv.InterpolationMode.BICUBIC),
        tv.RandomHorizontalFlip(),
        tv.ToTensor(),
        tv.Normalize(MEAN, STD),
    ])  # fmt: skip

    def load(path: Path) -> torch.Tensor:
        with path.open("rb") as file:
            return transform(Image.open(file).convert("RGB"))

    return lambda epoch: torch.stack([load(path) for path in files])


def measure(kind: str, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder, kind)
        files = sorted(folder.iterdir())
        data = TrainDataset(open_source(name), PretrainTransform((224, 224), Reading(3)), seed=0)
        indices = range(len(files))

        def ours(epoch: int) -> torch.Tensor:
            return data.__getitems__([(epoch, index) for index in indices]).images

        runs = {
            "torchvision": (torchvision_pipeline(files), 1),
            "ours": (ours, 1),
            "ours_normalised": (lambda epoch: normalize(ours(epoch), MEAN, STD), 1),
            "repeats_4": (
                lambda epoch: data.__getitems__([(4 * epoch + r, index) for index in indices for r in range(4)]),
                4,
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for run, (function, crops) in runs.items():
                torch.manual_seed(number)
                begin = time.perf_counter()
                function(number)
                taken = (time.perf_counter() - begin) / (len(files) * crops)
                if number > 0:  # the first round warms up
                    times[run].append(taken)
        mean_bytes = statistics.fmean(path.stat().st_size for path in files)
    speed = {run: 1 / statistics.median(values) for run, values in times.items()}
    return {
        "bytes_per_image": round(mean_bytes),
        "images_per_second_per_core": {run: round(value, 2) for run, value in speed.items()},
        "ratio_to_torchvision": {
            run: round(value / speed["torchvision"], 2) for run, value in speed.items() if run != "torchvision"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "rounds": arguments.rounds,
        **{kind: measure(kind, arguments.rounds) for kind in KINDS},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
