"""Peak memory of a training step by the number of its images: python benchmarks/peak_memory.py

Measured on a CPU as `emae bench step` does: each method takes two steps in a process of its own, and what they raise
its resident peak by is its peak; none where they are killed for it. Writes results/peak_memory.json, and a table of
docs/scaling.md from it.
"""

import json
from datetime import date
from pathlib import Path

import torch
from scaling_tables import markdown, rewrite

from efficient_mae.bench.step import BenchStepConfig, host_peak
from efficient_mae.engine.machine import describe_machine

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "peak_memory.json"
MODEL = "mae_vit_large_patch16"
# As many as MAE has room for in 24 GiB.
BATCH_SIZES = {"fp32": (32, 128), "bf16": (32, 128, 256)}
# By number, of those that `emae bench step` times.
METHODS = {0: "MAE 0.75", 2: "Efficient MAE 0.85", 5: "transformers ViTMAE 0.75"}


def measure() -> list[dict[str, float | str]]:
    """Gigabytes of each method, for each precision and number of images."""
    config = BenchStepConfig(model=MODEL, peers=True)
    rows = []
    for precision, batch_sizes in BATCH_SIZES.items():
        for batch_size in batch_sizes:
            row: dict[str, float | str] = {"precision": precision, "batch_size": batch_size}
            for number, name in METHODS.items():
                try:
                    found = host_peak(config, number, batch_size, precision)
                except MemoryError:
                    print(f"{name} does not fit with {batch_size} images", flush=True)
                    continue
                if found is None or found[0] != name:
                    raise SystemExit(f"number {number} is {found}, and should be {name}")
                row[name] = found[1]
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    rows = measure()
    machine = describe_machine(torch.device("cpu"))
    result = {"date": date.today().isoformat(), "machine": machine, "model": MODEL, "gigabytes": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    mae, efficient, peer = METHODS.values()

    def over(row: dict[str, float | str], other: str) -> str:
        return f"{float(row[efficient]) / float(row[other]):.2f}" if other in row else ""

    table = markdown(
        ("precision", "images a step", *(f"{name}, GB" for name in METHODS.values()), f"/ {mae}", f"/ {peer}"),
        (
            (
                str(row["precision"]),
                str(row["batch_size"]),
                *(f"{row[name]:.1f}" if name in row else "" for name in METHODS.values()),
                over(row, mae),
                over(row, peer),
            )
            for row in rows
        ),
    )
    rewrite(ROOT / "docs" / "scaling.md", "peak measured", table, script="peak_memory")


if __name__ == "__main__":
    main()
