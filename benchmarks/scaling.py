"""What pre-training costs on 1, 8 and 64 H100s: work, time, memory, communication, storage and decoding.

    python benchmarks/scaling.py [--results RESULTS] [--out benchmarks/results/scaling.json] [--page docs/scaling.md]

Work is counted on the models (`efficient_mae.bench.flops`), and what a training step keeps for its backward pass is
counted on them too, on a CPU in bf16. Decoding is measured on one core. The rest is arithmetic on the assumptions
below; nothing was measured on an H100. The page's tables, between its markers, are replaced. With RESULTS nothing is
counted or measured again.
"""

import argparse
import datetime
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from skimage import data as pictures

import efficient_mae as emae
from efficient_mae.bench.flops import MAE_MASK_RATIO, count_gmacs, mae_counterpart, model_cost
from efficient_mae.data import PretrainTransform, TrainDataset, open_source
from efficient_mae.engine.distributed import autocast
from efficient_mae.engine.machine import describe_machine
from efficient_mae.engine.memory import step_bytes
from efficient_mae.masking import plan_masks
from efficient_mae.models import MAEConfig, MaskedAutoencoder

GPUS = (1, 8, 64)
GPUS_A_NODE = 8
BATCH_SIZE = 4096

IMAGENET, EPOCHS, BILLION = 1_281_167, 800, 10**9
# Bytes of an ImageNet-1K training image: 138 GiB over its number of files.
IMAGE_BYTES = 115e3

# An H100 SXM as its maker states it; and what of it is assumed here to be reached.
REACHED_FLOPS = 350e12  # of 989e12 in bf16
USABLE_BYTES = 72e9  # of 80e9
# Bytes a second in each direction: a GPU's NVLink, and a machine's eight InfiniBand adapters of 400 Gb/s. A ring
# leaves a machine once, and each adapter has a ring of its own, with an eighth of the bytes.
NVLINK_BYTES, INFINIBAND_BYTES, REACHED_LINK = 450e9, GPUS_A_NODE * 50e9, 0.8

# Float32 weights, their gradients and AdamW's two moments; and the bf16 copy that autocast or FSDP computes with.
STATE_BYTES, BF16_BYTES = 16, 2


def models() -> dict[str, MAEConfig]:
    """ViT-B, L, H, and one of a billion parameters: ViT-g's width, depth and heads, an MLP of 4 times the width."""
    with torch.device("meta"):
        named = {
            name: emae.create_model(f"mae_vit_{size}").config
            for name, size in (
                ("ViT-B/16", "base_patch16"),
                ("ViT-L/16", "large_patch16"),
                ("ViT-H/14", "huge_patch14"),
            )
        }
    return {**named, "ViT-g/14": replace(named["ViT-H/14"], embed_dim=1408, depth=40, num_heads=16)}


def kept_bytes_an_image(config: MAEConfig) -> dict[str, float]:
    """Bytes that a training step in bf16 keeps for an image, plainly and with activation checkpointing.

    Counted with 2 and with 4 encoder blocks; each further block keeps as much as those two between them, halved.
    """
    found = {}
    for kind, enable in (("plain", False), ("checkpointed", True)):
        shallow, deeper = (_kept_bytes(replace(config, depth=depth), enable) for depth in (2, 4))
        found[kind] = shallow + (config.depth - 2) * (deeper - shallow) / 2
    return found


def _kept_bytes(config: MAEConfig, checkpointed: bool) -> float:
    """The same of one model as it is."""
    model, device = MaskedAutoencoder(config), torch.device("cpu")
    model.set_grad_checkpointing(checkpointed)

    def probe(images: int) -> torch.Tensor:
        layout = model.plan(images, generator=torch.Generator().manual_seed(0))
        with autocast("bf16", device):
            return model(torch.zeros(images, config.in_chans, *config.img_size), layout).loss

    few, more = (step_bytes(probe, images, list(model.parameters()), device) for images in (2, 6))
    return (more - few) / 4


def count(config: MAEConfig) -> dict[str, Any]:
    """What is counted on a model: parameters, work, and what its step keeps."""
    cost, mae = model_cost(config), mae_counterpart(config)
    kept = {"efficient_mae": kept_bytes_an_image(config), "mae": kept_bytes_an_image(mae)}
    return {
        "parameters": cost.encoder_parameters + cost.decoder_parameters,
        "encoder_parameters": cost.encoder_parameters,
        "block_parameters": 12 * config.embed_dim**2,
        "gmacs": {"efficient_mae": count_gmacs(config), "mae": cost.mae_gmacs},
        "kept_bytes_an_image": kept,
    }


def measure_decoding(rounds: int = 7, images: int = 64) -> float:
    """Images a second on one core: read, decode, crop to 224 pixels, mask; photographs of 500 x 375 as JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(images):
            photograph = Image.fromarray((pictures.astronaut, pictures.coffee, pictures.rocket)[number % 3]())
            photograph.resize((500, 375)).save(Path(folder) / f"{number:02}.jpg", quality=90)
        dataset = TrainDataset(
            open_source(folder, "train"),
            PretrainTransform((224, 224), 3, scale=(0.2, 1.0), hflip=True),
            seed=0,
            num_patches=196,
            make_masks=partial(plan_masks, grid_size=(14, 14), patch_size=16),
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = []
        for epoch in range(rounds + 1):
            begin = time.perf_counter()
            dataset.__getitems__([(epoch, index) for index in range(images)])
            seconds.append(time.perf_counter() - begin)
        torch.set_num_threads(threads)
    return images / statistics.median(seconds[1:])


def link(gpus: int) -> float:
    """Bytes a second that a GPU sends of gradients or weights: as fast as the slowest part of the rings."""
    return REACHED_LINK * (NVLINK_BYTES if gpus <= GPUS_A_NODE else min(NVLINK_BYTES, INFINIBAND_BYTES))


def tables(counted: dict[str, Any], decoded: float) -> Iterator[tuple[str, str]]:
    """The page's tables, by name."""
    yield (
        "work",
        _table(
            (
                "model",
                "parameters",
                "GMACs, MAE 0.75",
                "GMACs, Efficient MAE 0.85",
                "GFLOP an image and step",
                "saving",
            ),
            (
                (
                    name,
                    f"{one['parameters'] / 1e6:,.0f} M",
                    f"{one['gmacs']['mae']:.1f}",
                    f"{one['gmacs']['efficient_mae']:.1f}",
                    f"{step_flops(one) / 1e9:,.0f}",
                    f"{one['gmacs']['mae'] / one['gmacs']['efficient_mae']:.2f}x",
                )
                for name, one in counted.items()
            ),
        ),
    )
    yield (
        "time",
        _table(
            (
                "model",
                "data",
                *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS),
                "GPU hours",
                "GPU hours, MAE 0.75",
            ),
            (
                (
                    name,
                    data,
                    *(_duration(images * step_flops(one) / REACHED_FLOPS / gpus) for gpus in GPUS),
                    f"{images * step_flops(one) / REACHED_FLOPS / 3600:,.0f}",
                    f"{images * step_flops(one, 'mae') / REACHED_FLOPS / 3600:,.0f}",
                )
                for name, one in counted.items()
                for data, images in (
                    (f"ImageNet-1K, {EPOCHS} epochs", IMAGENET * EPOCHS),
                    ("a billion images, once", BILLION),
                )
            ),
        ),
    )
    yield (
        "memory",
        _table(
            (
                "model",
                "state, ddp",
                *(f"state, fsdp on {gpus}" for gpus in GPUS[1:]),
                "an image",
                "an image, MAE 0.75",
            )
            + ("an image, checkpointed", "images that fit, ddp", f"images that fit, fsdp on {GPUS_A_NODE}"),
            (
                (
                    name,
                    _gigabytes(state_bytes(one)),
                    *(_gigabytes(state_bytes(one, gpus)) for gpus in GPUS[1:]),
                    *(
                        f"{one['kept_bytes_an_image'][method][kind] / 1e6:.0f} MB"
                        for method, kind in (
                            ("efficient_mae", "plain"),
                            ("mae", "plain"),
                            ("efficient_mae", "checkpointed"),
                        )
                    ),
                    *(f"{_images_that_fit(one, shards):,}" for shards in (1, GPUS_A_NODE)),
                )
                for name, one in counted.items()
            ),
        ),
    )
    yield (
        "communication",
        _table(
            (
                "model",
                "GPUs",
                "sent by each GPU a step, ddp or fsdp",
                "time of it",
                "computing of a step",
                "share if nothing overlaps",
            ),
            (
                (
                    name,
                    str(gpus),
                    _gigabytes(sent_bytes(one, gpus)),
                    f"{1e3 * sending:.0f} ms",
                    f"{1e3 * computing:,.0f} ms",
                    f"{sending / (sending + computing):.0%}",
                )
                for name, one in counted.items()
                for gpus in GPUS[1:]
                for sending in (sent_bytes(one, gpus) / link(gpus),)
                for computing in (BATCH_SIZE * step_flops(one) / REACHED_FLOPS / gpus,)
            ),
        ),
    )
    yield (
        "data",
        _table(
            ("model", "GPUs", "images/s", "read from storage", "CPU cores that decode", "cores a GPU"),
            (
                (
                    name,
                    str(gpus),
                    f"{rate:,.0f}",
                    f"{rate * IMAGE_BYTES / 1e9:.2f} GB/s",
                    f"{rate / decoded:,.0f}",
                    f"{rate / decoded / gpus:.0f}",
                )
                for name, one in counted.items()
                for gpus in GPUS
                for rate in (gpus * REACHED_FLOPS / step_flops(one),)
            ),
        ),
    )


def step_flops(one: dict[str, Any], method: str = "efficient_mae") -> float:
    """FLOPs of an image in a training step: two a multiply-accumulate; the backward pass costs two forward ones."""
    return one["gmacs"][method] * 1e9 * 2 * 3


def state_bytes(one: dict[str, Any], shards: int = 1) -> float:
    """Bytes of weights, gradients and optimiser on a GPU; sharded, also two blocks' weights and gradients in bf16."""
    if shards == 1:
        return one["parameters"] * (STATE_BYTES + BF16_BYTES)
    return one["parameters"] * STATE_BYTES / shards + 2 * 2 * BF16_BYTES * one["block_parameters"]


def sent_bytes(one: dict[str, Any], gpus: int) -> float:
    """Bytes that each GPU sends in a step of one micro-batch.

    ddp: a ring all-reduce of float32 gradients, 2 x 4 bytes a parameter. fsdp: weights gathered in bf16 for the
    forward and for the backward pass, 2 x 2 bytes, and float32 gradients reduced and scattered, 4: the same.
    """
    return 8 * one["parameters"] * (gpus - 1) / gpus


def _images_that_fit(one: dict[str, Any], shards: int) -> int:
    left = USABLE_BYTES - state_bytes(one, shards)
    return max(0, int(left / one["kept_bytes_an_image"]["efficient_mae"]["plain"]))


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} h"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(page: Path, name: str, content: str) -> None:
    """Replace what stands between a page's markers of this name."""
    begin, end = f"<!-- {name}: benchmarks/scaling.py -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, found = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", page.read_text())
    if found != 1:
        raise SystemExit(f"{page}: has {found} places for the table {name!r}, and needs one")
    page.write_text(text)


def count_and_measure() -> dict[str, Any]:
    """All that is not arithmetic, with date and machine."""
    decoded = measure_decoding()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "mae_mask_ratio": MAE_MASK_RATIO,
        "measured": {"decoded_images_a_second_on_one_core": round(decoded, 1)},
        "counted": {name: count(config) for name, config in models().items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="of an earlier run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    result = json.loads(arguments.results.read_text()) if arguments.results else count_and_measure()
    result["assumed"] = {
        "device": "H100 SXM 80 GB, not measured",
        "reached_flops": REACHED_FLOPS,
        "usable_bytes": USABLE_BYTES,
        "nvlink_bytes_a_second": NVLINK_BYTES * REACHED_LINK,
        "infiniband_bytes_a_second": INFINIBAND_BYTES * REACHED_LINK,
        "image_bytes": IMAGE_BYTES,
        "batch_size": BATCH_SIZE,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.page:
        measured = result["measured"]["decoded_images_a_second_on_one_core"]
        for name, content in tables(result["counted"], measured):
            rewrite(arguments.page, name, content)


if __name__ == "__main__":
    main()
