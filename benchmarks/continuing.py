"""How soon a run that starts from trained weights is where one from scratch is after five epochs.

    python benchmarks/continuing.py [--runs FOLDER]

Runs on bundled images by the recipe `demo` (what is committed: as it was until 2026-11-27), whole commands: the
demo's own from scratch; then, in batches of 256 as there and in batches of 64, one that starts from the demo's
weights, and one from its encoder alone, with a new decoder. These have other crops, masks and order (another seed).
The loss is the mean of ten steps in a row, the target that of the last ten in the fifth epoch from scratch, in
batches as large. Writes results/continuing.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.machine.facts import describe_machine

RESULT = Path(__file__).parent / "results" / "continuing.json"
EPOCHS, MEAN_OF = 5, 10
# Of each run what it starts from, and how many epochs it has.
CONTINUED = {"its weights": ("", 1), "its encoder alone": ("encoder.safetensors", 3)}
# By batch what is other than in the recipe, from scratch and from weights.
BATCHES: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {
    256: ({}, {"warmup_epochs": 0.2}),
    64: ({"epochs": EPOCHS, "batch_size": 64, "base_lr": 2e-3, "warmup_epochs": 0.5},) * 2,
}


def train(out: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a run, one a step."""
    flags = [
        f"--{name}={value}" for name, value in {"config": "demo", "out": out, "log_every": 1, **settings}.items()
    ]
    subprocess.run([sys.executable, "-m", "efficient_mae", "pretrain", *flags], check=True, stdout=subprocess.DEVNULL)
    return [row for row in read_metrics(out / "metrics.jsonl") if "loss" in row]


def means(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(epochs done, mean loss of the last ten steps) of each step from the tenth on."""
    losses = [row["loss"] for row in rows]
    ends = range(MEAN_OF, len(rows) + 1)
    return [(rows[end - 1]["epoch"], sum(losses[end - MEAN_OF : end]) / MEAN_OF) for end in ends]


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of the runs, kept, and resumed where one was broken off")
    folder = parser.parse_args().runs or Path(tempfile.mkdtemp())
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": describe_machine(torch.device("cpu"))}
    for batch, (alone, together) in BATCHES.items():
        prefix = "" if batch == 256 else f"{batch}-"
        scratch = means(train(folder / f"{prefix}scratch", **alone))
        target = next(loss for epoch, loss in scratch if epoch >= EPOCHS)
        found: dict[str, Any] = {"from scratch, at epoch 5": round(target, 4)}
        for name, (file, epochs) in CONTINUED.items():
            start = {"weights": folder / "scratch" / file, "seed": 1, "epochs": epochs}
            rows = means(train(folder / f"{prefix}{name.replace(' ', '-')}", **together | start))
            there = next((round(epoch, 2) for epoch, loss in rows if loss <= target), None)
            first, last = (round(loss, 4) for _, loss in (rows[0], rows[-1]))
            found[f"from {name}"] = {"there_at_epoch": there, "first": first, "last": last, "epochs": epochs}
        result[f"batch {batch}"] = found
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
