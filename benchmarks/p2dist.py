"""What P2Dist costs: masks a second on one core, and its share of a ViT-B training step of the same images.

    python benchmarks/p2dist.py [--out benchmarks/results/p2dist.json]

The step is Efficient MAE's own (forward, backward, AdamW) at 224 pixels on all cores; P2Dist and the whole of
`MaskPlanner` (masking, P2Dist, targets, weights, packing) run on one. Rounds alternate; medians are reported.
"""

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import efficient_mae as emae
from efficient_mae.engine.machine.distributed import autocast, resolve_precision
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.optim import build_adamw, set_learning_rate
from efficient_mae.methods.mae import MaskPlanner

RATIOS = (0.75, 0.85, 0.90, 0.95)
MASKS = 256


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def on_one_core(function: Callable[[], object]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(function)
    finally:
        torch.set_num_threads(threads)


def measure(rounds: int, batch_size: int, precision: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    masks = {ratio: emae.random_masking(MASKS, (14, 14), ratio, generator) for ratio in RATIOS}
    noise = torch.rand(MASKS, 196, generator=generator)
    model = emae.create_model("mae_vit_base_patch16")
    optimizer = build_adamw(model, 0.05)
    set_learning_rate(optimizer, 1e-4)
    images = torch.randn(batch_size, 3, 224, 224)
    layout = model.plan(batch_size)

    def step() -> None:
        with autocast(precision, torch.device("cpu")):
            loss = model(images, layout).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        taken = {f"p2dist_{ratio}": on_one_core(lambda r=ratio: emae.p2dist(masks[r])) for ratio in RATIOS}
        taken["plan_0.85"] = on_one_core(lambda: MaskPlanner((14, 14), 16)(noise))
        taken["step"] = seconds(step)
        if number > 0:  # the first round warms up
            for name, value in taken.items():
                times.setdefault(name, []).append(value)
    median = {name: statistics.median(values) for name, values in times.items()}
    image_step = median["step"] / batch_size
    return {
        "masks_per_second_per_core": {ratio: round(MASKS / median[f"p2dist_{ratio}"]) for ratio in RATIOS},
        "plans_per_second_per_core": round(MASKS / median["plan_0.85"]),
        "vit_base_step_images_per_second": round(1 / image_step, 2),
        "p2dist_share_of_step": round(median["p2dist_0.85"] / MASKS / image_step, 5),
        "plan_share_of_step": round(median["plan_0.85"] / MASKS / image_step, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cpu")
    precision = resolve_precision("auto", device)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "precision": precision,
        **measure(arguments.rounds, arguments.batch_size, precision),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
