"""The tables of docs/scaling.md: arithmetic on what scaling.py counts and measures, and on what is assumed here."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

METHODS = ("efficient_mae", "mae")
GPUS = (1, 8, 64)
GPUS_A_NODE = 8
BATCH_SIZE = 4096
# Of a GPU, at which peak memories are compared.
PEAK_IMAGES = (64, 256, 512)

IMAGENET, EPOCHS, BILLION = 1_281_167, 800, 10**9
# Bytes of an ImageNet-1K training image: 138 GiB over its number of files.
IMAGE_BYTES = 115e3

# What one H100 reached in ViT-L/16's eager steps at 0.85 and 0.75 (results/gpu/step_large.json), taken for all models
# and for several GPUs, which run eagerly; and its memory, as assumed.
REACHED_FLOPS = {"efficient_mae": 227e12, "mae": 272e12}
USABLE_BYTES = 72e9  # of 80e9
# Bytes a second in each direction: a GPU's NVLink, and a machine's eight InfiniBand adapters of 400 Gb/s. A ring
# leaves a machine once, and each adapter has a ring of its own, with an eighth of the bytes.
NVLINK_BYTES, INFINIBAND_BYTES, REACHED_LINK = 450e9, GPUS_A_NODE * 50e9, 0.8

# Float32 weights, their gradients and AdamW's two moments; and the bf16 copy that autocast or FSDP computes with.
STATE_BYTES, BF16_BYTES = 16, 2

# As the results state them.
ASSUMED = {
    "device": "H100 SXM 80 GB; reached_flops measured on one, for ViT-L/16 in eager steps",
    "reached_flops": REACHED_FLOPS,
    "usable_bytes": USABLE_BYTES,
    "nvlink_bytes_a_second": NVLINK_BYTES * REACHED_LINK,
    "infiniband_bytes_a_second": INFINIBAND_BYTES * REACHED_LINK,
    "image_bytes": IMAGE_BYTES,
    "batch_size": BATCH_SIZE,
}


def link(gpus: int) -> float:
    """Bytes a second that a GPU sends of gradients or weights: as fast as the slowest part of the rings."""
    return REACHED_LINK * (NVLINK_BYTES if gpus <= GPUS_A_NODE else min(NVLINK_BYTES, INFINIBAND_BYTES))


def tables(counted: dict[str, Any], decoded: float) -> Iterator[tuple[str, str]]:
    """The page's tables, by name.

    Args:
        counted: what scaling.py counts, by model.
        decoded: images a second that a core decodes.
    """
    yield (
        "work",
        markdown(
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
        markdown(
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
                    *(_duration(images * seconds(one) / gpus) for gpus in GPUS),
                    f"{images * seconds(one) / 3600:,.0f}",
                    f"{images * seconds(one, 'mae') / 3600:,.0f}",
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
        markdown(
            (
                "model",
                "state, ddp",
                *(f"state, fsdp on {gpus}" for gpus in GPUS[1:]),
                "an image, encoder",
                "decoder",
                "MAE 0.75, encoder",
                "decoder",
                "an image, checkpointed",
                "images that fit, ddp",
                f"fsdp on {GPUS_A_NODE}",
            ),
            (
                (
                    name,
                    _gigabytes(state_bytes(one)),
                    *(_gigabytes(state_bytes(one, gpus)) for gpus in GPUS[1:]),
                    *(f"{bytes_ / 1e6:.0f} MB" for method in METHODS for bytes_ in _kept(one, method)),
                    f"{one['kept_bytes_an_image']['efficient_mae']['checkpointed'] / 1e6:.0f} MB",
                    *(f"{_images_that_fit(one, shards):,}" for shards in (1, GPUS_A_NODE)),
                )
                for name, one in counted.items()
            ),
        ),
    )
    yield (
        "peak",
        markdown(
            (
                "images on a GPU",
                *(f"{name}, Efficient MAE 0.85 / MAE 0.75" for name in counted),
                *(f"{name}, / MAE 0.75 decoded at once" for name in counted),
            ),
            (
                (
                    str(images),
                    *(
                        f"{_peak(one, 'efficient_mae', images) / _peak(one, 'mae', images, at_once):.2f}"
                        for at_once in (False, True)
                        for one in counted.values()
                    ),
                )
                for images in PEAK_IMAGES
            ),
        ),
    )
    yield (
        "communication",
        markdown(
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
                for computing in (BATCH_SIZE * seconds(one) / gpus,)
            ),
        ),
    )
    yield (
        "data",
        markdown(
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
                for rate in (gpus / seconds(one),)
            ),
        ),
    )


def step_flops(one: dict[str, Any], method: str = "efficient_mae") -> float:
    """FLOPs of an image in a training step: two a multiply-accumulate; the backward pass costs two forward ones."""
    return one["gmacs"][method] * 1e9 * 2 * 3


def seconds(one: dict[str, Any], method: str = "efficient_mae") -> float:
    """Of a GPU, for an image in a training step."""
    return step_flops(one, method) / REACHED_FLOPS[method]


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


def _kept(one: dict[str, Any], method: str) -> tuple[float, float]:
    """Bytes of an image that the encoder and the decoder keep."""
    kept = one["kept_bytes_an_image"][method]
    return kept["plain"] - kept["decoder"], kept["decoder"]


def _images_that_fit(one: dict[str, Any], shards: int) -> int:
    left = USABLE_BYTES - state_bytes(one, shards)
    encoder, decoder = _kept(one, "efficient_mae")
    if shards == 1:  # a sharded decoder takes all images at once
        return max(0, int((left - one["decoder_part"] * decoder) / encoder))
    return max(0, int(left / (encoder + decoder)))


def _peak(one: dict[str, Any], method: str, images: int, at_once: bool = False) -> float:
    """Bytes of state and of what a step keeps of so many images, which the decoder takes in parts or at once."""
    encoder, decoder = _kept(one, method)
    return state_bytes(one) + images * encoder + (images if at_once else min(images, one["decoder_part"])) * decoder


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} h"


def markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(page: Path, name: str, content: str, script: str = "scaling") -> None:
    """Replace what stands between a page's markers of this name, which name the script that does so."""
    begin, end = f"<!-- {name}: benchmarks/{script}.py -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, found = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", page.read_text())
    if found != 1:
        raise SystemExit(f"{page}: has {found} places for the table {name!r}, and needs one")
    page.write_text(text)
