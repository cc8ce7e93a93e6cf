"""`emae embed`: what an encoder makes of every image of a source, as a file.

N images, D width of the encoder, H and W patches of an image's column and row.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import nn

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import DataChoice, EvalTransform, Source, describe_images, open_source
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.storage.data_record import DataRecord
from efficient_mae.errors import InputError
from efficient_mae.interop import adapt_encoder, load, load_statistics
from efficient_mae.methods import backbone_of
from efficient_mae.ranges import Location, NonNegativeInt, Pixels, PositiveInt
from efficient_mae.tasks import features
from efficient_mae.tasks.rows import Rows, RowWork, check_out
from efficient_mae.tasks.table_files import Kind, require_parquet, write_table

# The features' names of `pool`, and what they are called where they are made.
POOLS = {"mean": "avg", "cls": "token", "none": features.GRID}

# Values of the features that are written at a time: 64 MiB.
_AT_ONCE = 2**24

# Settings from which no number of an image follows; how many classes are named is for those alone who name them.
_NO_MATTER = ("out", "weights", "num_workers", "top")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(DataChoice, ReadingSettings):
    """Settings of `emae embed`."""

    weights: Location
    """run directory (of any task), checkpoint, export, timm:NAME, folder of timm's or transformers', .safetensors or
    .pth"""
    data: Location
    """folder of images, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist-sample or photographs-sample; labels aren't
    needed"""
    out: Location
    """file to write: .parquet, or .npy or .safetensors with names and labels in a .csv beside it"""
    part: Literal["train", "test"] = "train"
    """of the data; data without parts are train"""
    pool: Literal["mean", "cls", "none"] = "mean"
    """feature of an image: mean of its patches' tokens, cls, its class token, or none: the grid of patches"""
    img_size: Pixels | None = None
    """pixels, one number or [height, width] (null: as trained)"""
    batch_size: PositiveInt = 256
    """images encoded at a time"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    num_workers: NonNegativeInt = 1
    """processes that read images"""


@dataclass(frozen=True, kw_only=True)
class EmbedResult(Result):
    """What was written.

    Attributes:
        out: the file.
        files: names of what was written, that file among them.
        images: their number.
        shape: of a feature.
        unreadable: images that were left out, each with the reason.
        images_per_second: of this call; None where all was computed before.
    """

    out: str
    files: list[str]
    images: int
    shape: list[int]
    unreadable: list[Any]
    images_per_second: float | None


def embed(config: EmbedConfig) -> EmbedResult:
    """Write the features of a source's images, float32, in the source's order, with names and labels.

    Killed and called again it goes on, and the file is the same to the bit. Images that cannot be read are left out
    and named. Of a fine-tuned run, tokens are normalised by the norm that followed the mean there.

    Raises:
        InputError: no such weights or data, an ending that isn't known, a file that is there already or was begun
            with other settings, or no image that can be read.
    """
    out = Path(config.out)
    if out.suffix not in WRITERS:
        raise InputError(f"out={out}: must end in {', '.join(WRITERS)}")
    check_out(out, *(() if out.suffix == ".parquet" else (out.with_suffix(".csv"),)))
    require_parquet(out, ".npy or .safetensors")
    encoder, statistics = backbone_of(load(config.weights)).float(), load_statistics(config.weights)
    if config.pool != "none":
        encoder.check_pool(POOLS[config.pool])
    if config.img_size is not None:
        encoder = adapt_encoder(encoder, config.img_size)
    source = open_source(config.data, config.part, config.alone())
    device = find_device(config.device)
    precision = resolve_precision(config.precision, device)
    reading = config.reading(source, encoder.in_chans, statistics.reading)
    work = RowWork(out, work_settings(config, encoder, source, precision))
    say(describe_images(source, reading, encoder.img_size).text)
    encoder.to(device).eval()
    pooled = {"statistics": statistics, "precision": precision, "pool": POOLS[config.pool]}
    rows = work.compute(
        source,
        partial(features.embed, encoder, **pooled),
        (*encoder.last_grid, encoder.dims[-1]) if config.pool == "none" else (encoder.dims[-1],),
        EvalTransform(encoder.img_size, reading),
        min_size=encoder.patch_size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
    )
    files = WRITERS[out.suffix](work.folder / out.name, rows, source)
    work.finish(*files)
    return EmbedResult(
        out=str(out),
        files=[file.name for file in files],
        images=len(rows.indices),
        shape=list(rows.values.shape[1:]),
        unreadable=rows.unreadable,
        images_per_second=rows.images_per_second,
    )


def show_embed(result: EmbedResult, console: Console) -> None:
    """Print what :func:`embed` did."""
    shape = " x ".join(map(str, result.shape))
    rate = result.images_per_second
    speed = "" if rate is None else f", {rate:,.0f} images/s"
    files = [Path(result.out).with_name(name) for name in result.files]
    console.print(f"{', '.join(map(str, files))}: {result.images:,} features of {shape}{speed}", markup=False)


def work_settings(config: Any, model: nn.Module, source: Source, precision: str) -> dict[str, Any]:
    """What is computed of images follows from these: to the bit, on one machine."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    kept = {name: value for name, value in vars(config).items() if name not in _NO_MATTER}
    images = DataRecord.of(source)
    found = {"images": images.images, "names": images.names}
    if images.names:  # wherever they lie, and however that is spelt
        del kept["data"]
    return kept | found | {"weights": digest.hexdigest(), "precision": precision}


def image_columns(source: Source, indices: np.ndarray) -> tuple[dict[str, Kind], dict[str, list[Any]]]:
    """Types and values of the columns that say which images these are: name, and label and class if there are any."""
    names = [source.sample_name(int(index)) for index in indices]
    if source.classes is None:
        return {"name": str}, {"name": names}
    labels = [source.label(int(index)) for index in indices]
    known = [None if label is None or not 0 <= label < len(source.classes) else label for label in labels]
    classes = [None if label is None else source.classes[label] for label in known]
    return {"name": str, "label": int, "class": str}, {"name": names, "label": known, "class": classes}


def _parts(rows: Rows, source: Source) -> Iterator[dict[str, Any]]:
    at_once = max(1, min(10_000, _AT_ONCE // prod(rows.values.shape[1:])))
    for start in range(0, len(rows.indices), at_once):
        part = slice(start, start + at_once)
        yield image_columns(source, rows.indices[part])[1] | {"feature": rows.values[part]}


def _write_parquet(file: Path, rows: Rows, source: Source) -> list[Path]:
    columns: dict[str, Kind] = {**image_columns(source, rows.indices[:0])[0], "feature": rows.values.shape[1:]}
    write_table(file, columns, _parts(rows, source))
    return [file]


def _write_npy(file: Path, rows: Rows, source: Source) -> list[Path]:
    header = {"descr": "<f4", "fortran_order": False, "shape": rows.values.shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        _append_values(stream.write, rows)
    return [_write_names(file, rows, source), file]


def _write_safetensors(file: Path, rows: Rows, source: Source) -> list[Path]:
    size = 4 * rows.values.size
    header = {"features": {"dtype": "F32", "shape": rows.values.shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        _append_values(stream.write, rows)
    return [_write_names(file, rows, source), file]


def _append_values(write: Callable[[bytes], Any], rows: Rows) -> None:
    """By parts: what safetensors and NumPy write must lie in memory as a whole."""
    flat = rows.values.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        write(flat[start : start + _AT_ONCE].astype("<f4").tobytes())


def _write_names(file: Path, rows: Rows, source: Source) -> Path:
    beside = file.with_suffix(".csv")
    columns, _ = image_columns(source, rows.indices[:0])
    parts = (rows.indices[start : start + 10_000] for start in range(0, len(rows.indices), 10_000))
    write_table(beside, columns, (image_columns(source, part)[1] for part in parts))
    return beside


WRITERS: dict[str, Callable[[Path, Rows, Source], list[Path]]] = {
    ".parquet": _write_parquet,
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
}
