"""Pre-trains a tiny ViT of 14 x 14 patches on the bundled pictures, as MAE and as Efficient MAE, on a GPU.

    python benchmarks/high_ratios.py > benchmarks/results/gpu/high_ratios.json

Three seeds each; what is told is the k-NN accuracy of the frozen encoder after the last epoch.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import describe_machine

SEEDS, EPOCHS, AT_A_TIME = 3, 20, 3
MODEL = {"model": "mae_vit_tiny_patch2", "img_size": 28, "in_chans": 1}
# As the studies of docs/results.md: crops in which what is far is hard, and pixels as they are.
DATA = {"data": "fashion-mnist-sample", "crop_scale": "[0.1,0.3]", "norm_pix_loss": "false"}
MAE = {"beta": "null", "gamma": 0}
METHODS = {
    "MAE 0.75": MAE | {"mask_ratio": 0.75},
    "MAE 0.95": MAE | {"mask_ratio": 0.95},
    "Efficient MAE 0.95": {"mask_ratio": 0.95},
}


def accuracy(method: str, seed: int, folder: Path) -> tuple[float, float]:
    """The encoder's, and the last loss."""
    out = folder / f"{method} {seed}".replace(" ", "-")
    settings = MODEL | DATA | METHODS[method] | {"seed": seed, "epochs": EPOCHS, "knn_every": EPOCHS, "out": out}
    settings |= {"base_lr": 1e-3, "batch_size": 256, "device": "cuda", "num_workers": 4, "panel_every": EPOCHS}
    settings["compile"] = "false"  # what it takes to compile is more than these runs last
    flags = [f"--{name}={value}" for name, value in settings.items()]
    subprocess.run(
        [sys.executable, "-m", "efficient_mae", "pretrain", *flags],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return next(row["knn"] for row in rows if "knn" in row), [row for row in rows if "loss" in row][-1]["loss"]


def main() -> None:
    pairs = [(method, seed) for seed in range(SEEDS) for method in METHODS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(lambda pair: accuracy(*pair, Path(folder)), pairs))
    methods = {
        method: {
            "knn": [knn for (name, _), (knn, _) in zip(pairs, found, strict=True) if name == method],
            "loss": [loss for (name, _), (_, loss) in zip(pairs, found, strict=True) if name == method],
        }
        for method in METHODS
    }
    machine = describe_machine(find_device("cuda"))
    date = datetime.date.today().isoformat()
    print(
        json.dumps({"date": date, "epochs": EPOCHS, "machine": machine, "model": MODEL, "methods": methods}, indent=1)
    )


if __name__ == "__main__":
    main()
