"""What pre-training is worth downstream: fine-tuning, linear probe and k-NN, with and without it.

    python benchmarks/downstream.py [--run RUN] [--out benchmarks/results/downstream.json]

Pre-trains the demo's encoder (or takes the demo's run directory), then compares it on 1,000 labelled images of the
bundled sample and its 2,000 held-out ones: fine-tuned from it and from scratch, probed and asked for neighbours
against an untrained encoder of the same shape, with the same settings. Everything is run with several seeds;
printed are means and 95 % intervals (Student's t). There is one pre-trained encoder, so its k-NN has no spread.
The probe's learning rate was raised once with a look at held-out accuracy, for both starts alike.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from efficient_mae.data import open_source, spread
from efficient_mae.data.sources.registry import Source
from efficient_mae.engine.machine.distributed import resolve_precision
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.intervals import mean_and_interval
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

SAMPLE = "fashion-mnist-sample"
DEMO = Path(__file__).parents[1] / "src" / "efficient_mae" / "recipes" / "demo.yaml"

# The same for both starts. A garment fills its 28 pixels, and the schedule is short: no more than crops and flips.
FINETUNE: dict[str, Any] = {
    "batch_size": 50,
    "base_lr": 5e-3,
    "layer_decay": 1.0,
    "auto_augment": None,
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 0.0,
    "crop_scale": (0.6, 1.0),
}
# LARS moves the head by a share of its own norm: few steps need large ones.
PROBE: dict[str, Any] = {"batch_size": 100, "base_lr": 20.0, "pool": "avg", "crop_scale": (0.6, 1.0)}


def write_folder(source: Source, folder: Path) -> None:
    """The images of a source as files, in a subfolder per class."""
    for index in range(len(source)):
        path = folder / f"class-{source.label(index)}" / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(index).save(path)


def measure(run: Path, work: Path, labels: int, epochs: int, probe_epochs: int, seeds: int) -> dict[str, Any]:
    """Accuracies by what was done and what it started from."""
    data = work / "labelled"
    write_folder(spread(open_source(SAMPLE, "train"), labels), data / "train")
    write_folder(open_source(SAMPLE, "test"), data / "val")
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    shape = {name: recipe[name] for name in ("model", "img_size", "in_chans", "depth")}
    starts: dict[str, dict[str, Any]] = {
        "pre-trained": {"weights": str(run)},
        "random": {"from_scratch": True, **shape},
    }
    found: dict[str, Any] = {}
    for start, settings in starts.items():
        common: dict[str, Any] = {"data": str(data), "seeds": seeds, "eval_every": epochs + probe_epochs, **settings}
        tuned = finetune(FinetuneConfig(**common, **FINETUNE, epochs=epochs, out=str(work / f"finetune-{start}")))
        probed = linear_probe(
            LinearProbeConfig(**common, **PROBE, epochs=probe_epochs, out=str(work / f"probe-{start}"))
        )
        found[start] = {"fine-tuning": tuned.plain()["top1"], "linear probe": probed.plain()["top1"]}
    neighbours = [knn(KnnConfig(weights=str(run), data=str(data), seed=seed)).accuracy for seed in range(seeds)]
    found["random"]["k-NN"] = asdict(mean_and_interval([one.untrained for one in neighbours]))
    found["pre-trained"]["k-NN"] = {"mean": neighbours[0].trained}
    found["raw pixels"] = {"k-NN": {"mean": neighbours[0].raw_pixels}}
    return found


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    kinds = ("fine-tuning", "linear probe", "k-NN")
    table = Table(
        "encoder", *kinds, title=f"top-1 on {result['test_images']:,} held-out images, {result['seeds']} seeds"
    )
    for start, scores in result["accuracy"].items():
        table.add_row(start, *(_cell(scores[kind]) if kind in scores else "" for kind in kinds))
    Console().print(table)


def _cell(score: dict[str, Any]) -> str:
    interval = f" ± {score['half_width']:.1%}" if "half_width" in score else ""
    return f"{score['mean']:.1%}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the demo's run directory; pre-trains one if not given")
    parser.add_argument("--labels", type=int, default=1000, help="labelled images to learn from")
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    parser.add_argument("--probe_epochs", type=int, default=20, help="of linear probing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = arguments.run
        if run is None:
            run = pretrain(PretrainConfig(**yaml.safe_load(DEMO.read_text()), out=str(work / "demo")))
        pretrained = time.monotonic()
        accuracy = measure(run, work, arguments.labels, arguments.epochs, arguments.probe_epochs, arguments.seeds)
        device = torch.device("cpu")
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine(device),
            "precision": resolve_precision("auto", device),
            "command": " ".join(["python", *sys.argv]),
            "pretraining_epochs": yaml.safe_load((run / "config.yaml").read_text())["epochs"],
            "labelled_images": arguments.labels,
            "test_images": len(open_source(SAMPLE, "test")),
            "seeds": arguments.seeds,
            "finetune": FINETUNE | {"epochs": arguments.epochs},
            "linear_probe": PROBE | {"epochs": arguments.probe_epochs},
            "pretraining_seconds": round(pretrained - begin),
            "downstream_seconds": round(time.monotonic() - pretrained),
            "accuracy": accuracy,
        }
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
