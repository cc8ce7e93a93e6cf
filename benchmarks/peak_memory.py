"""Peak memory of a training step by the number of its images.

    python benchmarks/peak_memory.py [--precision fp32]

Measured on a CPU as `emae bench step` does: each method takes two steps in a process of its own, and what they raise
its resident peak by is its peak; none where they find no room, so run nothing beside it. Writes
results/peak_memory_*.json of one precision or both, and a table of docs/scaling.md from both.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path

import torch
from scaling_tables import markdown, rewrite

from efficient_mae.bench.peaks import host_peak
from efficient_mae.bench.step import BenchStepConfig, host_contender
from efficient_mae.engine.machine.facts import describe_machine

ROOT = Path(__file__).parents[1]
MODEL = "mae_vit_large_patch16"
# As many as MAE has room for in 24 GiB.
BATCH_SIZES = {"fp32": (32, 128, 192), "bf16": (32, 128, 256)}
# By number, of those that `emae bench step` times.
METHODS = {"MAE 0.75": 0, "Efficient MAE 0.85": 2, "transformers ViTMAE 0.75": 6}
MAE, EFFICIENT, PEER = METHODS


def result_file(precision: str) -> Path:
    return Path(__file__).parent / "results" / f"peak_memory_{precision}.json"


def measure(precision: str) -> None:
    """Write the gigabytes of each method, for each number of images."""
    config = BenchStepConfig(model=MODEL, peers=True)
    rows = []
    for batch_size in BATCH_SIZES[precision]:
        row: dict[str, float] = {"batch_size": batch_size}
        for name, number in METHODS.items():
            try:
                found = host_peak(partial(host_contender, config, batch_size, precision), number)
            except MemoryError:
                print(f"{name} does not fit with {batch_size} images", flush=True)
                continue
            if found is None or found[0] != name:
                raise SystemExit(f"number {number} is {found}, and should be {name}")
            row[name] = found[1]
        print(precision, row, flush=True)
        rows.append(row)
    machine = describe_machine(torch.device("cpu"))
    result = {"date": date.today().isoformat(), "machine": machine, "model": MODEL, "gigabytes": rows}
    result_file(precision).write_text(json.dumps(result, indent=1) + "\n")


def table_rows() -> Iterator[tuple[str, ...]]:
    """One for each precision and number of images."""
    for precision in BATCH_SIZES:
        result = json.loads(result_file(precision).read_text())
        for row in result["gigabytes"]:
            yield (
                f"{precision}, {result['machine']['processor']}",
                str(row["batch_size"]),
                *(f"{row[name]:.1f}" if name in row else "" for name in METHODS),
                *(f"{row[EFFICIENT] / row[name]:.2f}" if name in row else "" for name in (MAE, PEER)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=BATCH_SIZES)
    chosen = parser.parse_args().precision
    for precision in BATCH_SIZES if chosen is None else [chosen]:
        measure(precision)
    head = ("precision, on", "images a step", *(f"{name}, GB" for name in METHODS), f"/ {MAE}", f"/ {PEER}")
    rewrite(ROOT / "docs" / "scaling.md", "peak measured", markdown(head, table_rows()), script="peak_memory")


if __name__ == "__main__":
    main()
