"""What a training step of ViT-B and ViT-L costs at the published sizes of Table 10's tasks: work, memory, time.

    python benchmarks/transfer_steps.py [--page docs/scaling.md]

UPerNet on 512 x 512 pixels and ADE20K's 150 classes, Mask R-CNN with ViTDet on 1024 x 1024 and COCO's 80. Multiply-
accumulates and what a step in bf16 keeps for its backward pass are counted on the models, on no device; of Mask R-CNN
without what follows from the objects that are found: anchors, suppression, pooling of regions, targets. Time is
arithmetic on the rate of scaling_tables.py. Writes results/transfer_steps.json, and the page's table.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch
from scaling_tables import REACHED_FLOPS, STATE_BYTES, markdown, rewrite
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import efficient_mae as emae
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.tasks.detect.model import Detector, DetectorConfig
from efficient_mae.tasks.segment.model import UPerNet, UPerNetConfig

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "transfer_steps.json"
DEVICE, GIB = torch.device("cpu"), 2**30
SIZES = {"ViT-B/16": "base", "ViT-L/16": "large"}
# Pixels and classes; images of a global batch.
TASKS = {"segment": (512, 150, 16), "detect": (1024, 80, 64)}


def build(task: str, size: str, checkpointed: bool) -> nn.Module:
    """The model, on the meta device."""
    side, classes, _ = TASKS[task]
    with torch.device("meta"):
        encoder = emae.create_model(f"mae_vit_{size}_patch16", img_size=side if task == "segment" else 224).backbone
        if task == "detect":
            return Detector(encoder, classes, DetectorConfig((side, side)), 0.1, checkpointed)
        model = UPerNet(encoder, classes, UPerNetConfig(width=encoder.embed_dim), 0.1)
        model.encoder.set_grad_checkpointing(checkpointed)
        return model


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """A scalar of all that is learned from."""
    if isinstance(model, Detector):
        return sum(model(images, [], []).values(), torch.zeros((), device=images.device))
    return sum((logits.float().mean() for logits in model(images)), torch.zeros((), device=images.device))


def count(task: str, size: str) -> dict[str, Any]:
    """Figures of an image: GMACs of the forward pass, GiB that are kept, and parameters."""
    side, gmacs = TASKS[task][0], dict[int, float]()

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        with autocast("bf16", DEVICE), FlopCounterMode(display=False) as counter:
            total = forward(model, images)
        gmacs[len(images)] = counter.get_total_flops() / 2e9
        return total

    found: dict[str, Any] = {"parameters": sum(one.numel() for one in build(task, size, False).parameters())}
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        one, two = (
            max(count_passes(loss, build(task, size, checkpointed), torch.zeros(images, 3, side, side), DEVICE))
            for images in (2, 4)
        )
        found[f"{name}_gib"] = (two - one) / 2 / GIB
    return found | {"gmacs": (gmacs[4] - gmacs[2]) / 2}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scaling.md")
    page = parser.parse_args().page
    counted = {f"{task} {name}": count(task, size) for task in TASKS for name, size in SIZES.items()}
    rate = min(REACHED_FLOPS.values())
    result = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "reached_flops": rate}
    RESULT.write_text(json.dumps(result | {"counted": counted}, indent=1) + "\n")
    kept = ("GiB an image", "checkpointed", "state, GiB")
    head = ("command, model", "parameters", "GMACs an image", *kept, "ms an image")
    rows = [
        (
            name, f"{one['parameters'] / 1e6:.0f} M", f"{one['gmacs']:.0f}", f"{one['plain_gib']:.2f}",
            f"{one['checkpointed_gib']:.2f}", f"{STATE_BYTES * one['parameters'] / GIB:.1f}",
            f"{1e3 * 6e9 * one['gmacs'] / rate:.1f}",
        )
        for name, one in counted.items()
    ]  # fmt: skip
    print(table := markdown(head, rows))
    rewrite(page, "transfer", table, "transfer_steps")


if __name__ == "__main__":
    main()
