"""The pilot of the main study (docs/results.md): settings of MAE 0.75, judged on training images held out from it.

    OMP_NUM_THREADS=1 python benchmarks/pilot.py

The first 50,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist) pre-train and teach, the
other 10,000 judge; its held-out images are not opened. Each run's line goes to benchmarks/results/pilot.jsonl as it
is done, and what is there isn't run again.
"""

import datetime
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from efficient_mae.data.sources.fashion_mnist import DEBIAN_FOLDER, read_idx
from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import describe_machine

RESULTS = Path(__file__).parent / "results" / "pilot.jsonl"
TRAINING, EPOCHS = 50_000, 3
CROPS, NORMALISED, RATES = ((0.2, 1.0), (0.1, 0.3)), (True, False), (1e-3, 2e-3, 4e-3)
FIRST, NEXT, MORE = (100,), (101, 102), (103, 104, 105, 106, 107)
# Of the settings, so many are run with the next seeds too.
BEST = 3
# What twice as many samples must gain to be taken.
GAIN = 0.01
# What the main study is to tell.
POINT = 0.01
MODEL = {
    "model": "mae_vit_tiny_patch4",
    "in_chans": 1,
    "img_size": 28,
    "depth": 4,
    "decoder_depth": 2,
    "decoder_embed_dim": 128,
    "mask_ratio": 0.75,
    "gamma": 0,
    "beta": None,
}
RUN = {"batch_size": 128, "warmup_epochs": 0.3, "precision": "bf16", "num_workers": 0, "panel_every": 1000}
PROBE = {"precision": "fp32", "num_workers": 0}

Setting = dict[str, Any]


def write_split(folder: Path) -> None:
    """Fashion-MNIST's training images as a set of their own, cut in training and held-out ones."""
    for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        array = read_idx(DEBIAN_FOLDER / f"train-{kind}-ubyte.gz", dimensions)
        for prefix, part in (("train", array[:TRAINING]), ("t10k", array[TRAINING:])):
            head = bytes((0, 0, 8, dimensions)) + np.array(part.shape, ">u4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + part.tobytes(), 1))


def emae(data: Path, command: str, settings: Setting) -> dict[str, Any]:
    flags = [
        f"--{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in settings.items()
    ]
    line = [sys.executable, "-m", "efficient_mae", command, "--data=fashion-mnist", "--json", *flags]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, env=os.environ | {"EMAE_DATA_DIR": str(data)})
    return json.loads(done.stdout)


def run(data: Path, settings: Setting, probe: Setting) -> dict[str, Any]:
    """Accuracy of an encoder that was pre-trained so, and the seconds that it took."""
    with tempfile.TemporaryDirectory(dir=data) as out:
        began = time.monotonic()
        emae(data, "pretrain", {**settings, "out": out})
        seconds = round(time.monotonic() - began)
        judged = emae(data, "probe", {**probe, "weights": out, "judges": ["ridge"]})
    accuracy = judged["encoders"][0]["judgements"]["ridge"]["accuracy"]["mean"]
    return {"accuracy": round(accuracy, 5), "seconds": seconds}


def by_setting(lines: Iterable[dict[str, Any]]) -> list[tuple[Setting, list[float]]]:
    """Accuracies of each setting, the best first."""
    groups: dict[str, list[float]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line["setting"]), []).append(line["accuracy"])
    found = [(json.loads(name), values) for name, values in groups.items()]
    return sorted(found, key=lambda pair: -statistics.mean(pair[1]))


def taken(found: list[tuple[Setting, list[float]]]) -> tuple[Setting, list[float]]:
    """The best setting, or of those within a standard error of it the one nearest the paper's."""
    best = found[0][1]
    least = statistics.mean(best) - statistics.stdev(best) / len(best) ** 0.5
    near = [pair for pair in found if statistics.mean(pair[1]) >= least]
    return min(near, key=lambda one: (not one[0]["norm_pix_loss"], one[0]["crop_scale"][1] < 1, one[0]["base_lr"]))


def fewest_seeds(spread: float) -> int:
    """For which a difference of `POINT` is told with 80 % power, one-sided at 0.025 / 3 (Student's t); at most 20."""
    for seeds in range(3, 20):
        least = stats.t.ppf(1 - 0.025 / 3, seeds - 1)
        if stats.nct.sf(least, seeds - 1, POINT / spread * seeds**0.5) >= 0.8:
            return seeds
    return 20


def main() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    machine, date = describe_machine(find_device("cpu")), datetime.date.today().isoformat()

    def need(settings: Iterable[Setting], seeds: Iterable[int]) -> list[dict[str, Any]]:
        """The lines of these runs; a seed of all settings before the next."""
        chosen = []
        for seed, setting in product(seeds, [json.loads(json.dumps(setting)) for setting in settings]):
            line = next((one for one in lines if (one["setting"], one["seed"]) == (setting, seed)), None)
            if line is None:
                found = run(folder, {**MODEL, **RUN, **setting, "seed": seed}, PROBE)
                line = {"setting": setting, "seed": seed, **found, "machine": machine, "date": date}
                lines.append(line)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            chosen.append(line)
        return chosen

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_split(folder)
        settings = [
            {"crop_scale": crops, "norm_pix_loss": normalised, "base_lr": rate, "epochs": EPOCHS}
            for crops, normalised, rate in product(CROPS, NORMALISED, RATES)
        ]
        best = [setting for setting, _ in by_setting(need(settings, FIRST))[:BEST]]
        short, once = taken(by_setting(need(best, FIRST + NEXT)))
        twice = short | {"epochs": 2 * EPOCHS}
        gain = statistics.mean(line["accuracy"] for line in need([twice], FIRST + NEXT)) - statistics.mean(once)
        chosen = twice if gain >= GAIN else short
        spread = statistics.stdev(line["accuracy"] for line in need([chosen], MORE)) * 2**0.5
    found = {"taken": chosen, "gain_of_twice": gain, "spread_of_a_difference": spread, "seeds": fewest_seeds(spread)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
