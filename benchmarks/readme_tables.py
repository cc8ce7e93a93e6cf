"""Writes the README's tables of speed from the results in benchmarks/results.

    python benchmarks/readme_tables.py

The step's come from `emae bench step --peers true --json`, one file a model, precision and processor (step_*.json;
gpu/step_*.json, by benchmarks/gpu.sh), and those with stable-pretraining installed (peers_*.json); the loader's from
benchmarks/jpeg.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from scaling_tables import markdown, rewrite

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
OURS = ("MAE 0.75", "MAE 0.85", "Efficient MAE 0.85", "Efficient MAE 0.90", "Efficient MAE 0.95")
PEER = "transformers ViTMAE 0.75"


def step_table() -> str:
    """One row a model and precision: Efficient MAE's images a second, and its speed beside that of others."""
    rows = []
    for file in sorted(RESULTS.glob("step_*.json")):
        result = json.loads(file.read_text())
        methods = {row["name"]: row for row in result["methods"]}
        rate = {name: row["images_per_second"] for name, row in methods.items()}
        efficient = methods["Efficient MAE 0.85"]
        memory = [methods[name]["peak_gigabytes"] for name in ("Efficient MAE 0.85", "MAE 0.75", PEER)]
        rows.append(
            (
                f"{_size(result['model'])}, {result['precision']}, batch {result['batch_size']}, "
                f"{_processor(result['machine'])}",
                f"{rate['Efficient MAE 0.85']:,.2f}",
                f"{rate['Efficient MAE 0.85'] / rate['MAE 0.75']:.2f}x ({efficient['gmac_ratio']:.2f}x)",
                f"{rate['Efficient MAE 0.85'] / rate[PEER]:.2f}x",
                f"{rate['MAE 0.75'] / rate[PEER]:.2f}x",
                f"{efficient['matmul_share']:.0%}",
                f"{result['masks_share']:.2%}",
                " / ".join("" if peak is None else f"{peak:.2f}" for peak in memory),
            )
        )
    head = (
        "model",
        "images/s",
        "to own MAE 0.75 (by GMACs)",
        "to transformers' MAE 0.75",
        "own MAE 0.75 to transformers'",
        "of a matrix product's rate",
        "masks, P2Dist, packing",
        "peak GB: Efficient / own MAE / transformers'",
    )
    return markdown(head, rows)


def gpu_table() -> str:
    """One row a model and way to run it on a GPU: images a second of each method, and peak memory."""
    rows = []
    results = [json.loads(file.read_text()) for file in (RESULTS / "gpu").glob("step_*.json")]
    for result in sorted(results, key=lambda each: ("BLH".index(_size(each["model"])[4]), each["compile"])):
        methods = {row["name"]: row for row in result["methods"]}
        shown = ("MAE 0.75", "Efficient MAE 0.85", "Efficient MAE 0.90", "Efficient MAE 0.95", PEER)
        peaks = [methods[name]["peak_gigabytes"] for name in (shown[1], shown[0], PEER) if name in methods]
        how = "compiled, CUDA graphs" if result["compile"] and result["cuda_graphs"] else "eager"
        efficient = methods["Efficient MAE 0.85"]
        rows.append(
            (
                f"{_size(result['model'])}, {how}",
                *(f"{methods[name]['images_per_second']:,.0f}" if name in methods else "" for name in shown),
                f"{efficient['ratio']:.2f}x ({efficient['gmac_ratio']:.2f}x)",
                f"{efficient['matmul_share']:.0%}",
                " / ".join(f"{peak:.1f}" for peak in peaks if peak is not None),
            )
        )
    head = (
        "images/s",
        "own MAE 0.75",
        "Efficient MAE 0.85",
        "0.90",
        "0.95",
        "transformers' MAE 0.75",
        "0.85 to own MAE 0.75 (by GMACs)",
        "of a matrix product's rate",
        "peak GB: Efficient 0.85 / own MAE / transformers'",
    )
    return markdown(head, rows)


def peers_table() -> str:
    """One row a method, a column a precision: images a second, slowest first."""
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("peers_*.json"))]
    rates = [{row["name"]: row["images_per_second"] for row in result["methods"]} for result in results]
    rows = [
        (name if name not in OURS else f"own {name}", *(f"{rate[name]:.2f}" for rate in rates))
        for name in sorted(rates[0], key=lambda name: rates[0][name])
        if name not in OURS or name in ("MAE 0.75", "Efficient MAE 0.85")
    ]
    head = ("images/s", *(f"{result['precision']}, batch {result['batch_size']}" for result in results))
    return markdown(head, rows)


def jpeg_table() -> str:
    """One row a kind of photograph: crops a second of one core, beside torchvision's pipeline."""
    result = json.loads((RESULTS / "jpeg.json").read_text())

    def rows() -> Iterator[tuple[str, ...]]:
        for kind, found in result.items():
            if isinstance(found, dict) and "ratio_to_torchvision" in found:
                rate, ratio = found["images_per_second_per_core"], found["ratio_to_torchvision"]
                yield (
                    f"{kind}, {found['bytes_per_image'] / 1e3:,.0f} kB",
                    f"{rate['torchvision']:,.0f}",
                    f"{rate['ours']:,.0f} ({ratio['ours']:.1f}x)",
                    f"{rate['repeats_4']:,.0f} ({ratio['repeats_4']:.1f}x)",
                )

    return markdown(("JPEG", "torchvision", "`emae`", "with `--repeats 4`"), rows())


TABLES = {"step": step_table, "gpu": gpu_table, "peers": peers_table, "jpeg": jpeg_table}


def _processor(machine: dict[str, str]) -> str:
    """Intel Xeon of Intel(R) Xeon(R) Processor."""
    return machine["processor"].replace("(R)", "").replace("Processor", "").strip()


def _size(model: str) -> str:
    """ViT-B/16 of mae_vit_base_patch16."""
    _, _, size, patch = model.split("_")
    return f"ViT-{size[0].upper()}/{patch.removeprefix('patch')}"


if __name__ == "__main__":
    for name, table in TABLES.items():
        rewrite(ROOT / "README.md", name, table(), script="readme_tables")
