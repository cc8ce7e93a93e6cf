"""Numbers of every image of a source, in order, on the disk: killed and called again, it goes on to the same bits.

B images of a batch, N images that can be read, C channels, h and w height and width in pixels.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from efficient_mae.console import console, say
from efficient_mae.data import EvalTransform, Source, Subset
from efficient_mae.engine.storage.durable import (
    PARTIAL,
    append_synced,
    replace_file,
    sync_folder,
    whole_lines,
    write_synced,
)
from efficient_mae.engine.storage.lock import locked
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.tasks.features import image_batches
from efficient_mae.tasks.left_out import say_left_out

# In the folder of a work: what says that results are being put in place.
_PLACING = "placing"

# Seconds between two lines on how far it is, where there is no terminal for a bar.
_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Rows:
    """What was computed.

    Attributes:
        values: of each image that can be read; they stay on the disk.
        indices: their numbers in the source, ascending.
        unreadable: (name, reason) of each image that cannot be read, in order.
        images_per_second: of this call; None where there was nothing left to do.
    """

    values: Float32[np.ndarray, "N ..."]
    indices: Int64[np.ndarray, " N"]
    unreadable: list[tuple[str, str]]
    images_per_second: float | None


class RowWork:
    """The folder beside a result in which it is made; it is removed when the result is there.

    Args:
        out: the file that will hold the result.
        settings: what the result follows from; a folder of others is refused.

    Attributes:
        batches: file in the folder of a line for each batch that is done; what it says is the caller's.

    Raises:
        InputError: the folder was begun otherwise, or another process is at work in it.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out, self.folder = out, _folder_of(out)
        self.folder.mkdir(exist_ok=True)
        self._kept = ExitStack()
        self._kept.enter_context(locked(self.folder, out))
        self.batches, file = self.folder / "batches.jsonl", self.folder / "settings.json"
        if not (file.exists() and self.batches.exists() and self.batches.stat().st_size):
            replace_file(file, json.dumps(settings).encode())
        theirs = parse_json(file.read_bytes(), str(file))
        different = [
            f"{name} {theirs.get(name)!r} there, {value!r} here"
            for name, value in json.loads(json.dumps(settings)).items()
            if theirs.get(name) != value
        ]
        if different:
            raise InputError(
                f"out={out}: {self.folder} was begun otherwise: {'; '.join(different)}; remove it, or name "
                "another out"
            )

    @torch.no_grad()
    def compute(
        self,
        source: Source,
        function: Callable[[UInt8[Tensor, "B C h w"]], Tensor],
        shape: tuple[int, ...],
        transform: EvalTransform,
        *,
        min_size: int,
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ) -> Rows:
        """Compute what isn't there yet.

        Args:
            function: gives (B, *shape) of images on the device.
            transform: makes them.
            min_size: an image with a side shorter than this, in pixels, counts as unreadable.

        Raises:
            InputError: none of the images can be read.
        """
        log = _Log(self.folder, self.batches, 4 * prod(shape))
        first, begin = log.images, time.perf_counter()
        if first:
            say(f"{self.out}: going on after {first:,} of {len(source):,} images")
        rest = Subset(source, np.arange(first, len(source)))
        how = {"min_size": min_size, "batch_size": batch_size, "num_workers": num_workers, "device": device}
        with _Display(len(source), first) as display:
            for batch in image_batches(rest, transform, **how) if len(rest) else ():
                values = function(batch.images) if len(batch.images) else torch.empty(0, *shape)
                seen = min(log.images + batch_size, len(source))
                log.add(seen, values.float().cpu().numpy(), batch.indices.numpy() + first, batch.damaged)
                display.show(seen)
        rate = (log.images - first) / max(time.perf_counter() - begin, 1e-9) if first < len(source) else None
        if not log.rows:
            self.remove()  # once they are mended, they are read anew
            raise InputError(f"{source.name}: none of its images can be read")
        say_left_out(log.unreadable, len(source))
        return Rows(*log.read(shape), log.unreadable, rate)

    def finish(self, *files: Path) -> None:
        """Put what was written in the folder in its place, the last file last, and remove the folder."""
        (self.folder / _PLACING).touch()
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(self.out.with_name(file.name))
        sync_folder(self.out.parent)
        self.remove()

    def remove(self) -> None:
        """Take the folder away."""
        self._kept.close()
        shutil.rmtree(self.folder)


def _folder_of(out: Path) -> Path:
    return out.with_name(f"{PARTIAL}{out.name}")


def check_out(out: Path, *beside: Path) -> None:
    """Raise InputError unless files of these names can be made.

    Args:
        beside: that are put in their place before `out`: where that was broken off, those that are there are its own.
    """
    if out.exists():
        raise InputError(f"out={out}: is there already; remove it, or name another")
    if not (_folder_of(out) / _PLACING).exists() and (
        there := next((file for file in beside if file.exists()), None)
    ):
        raise InputError(f"out={out}: {there}, to be written beside it, is there already; remove it, or name another")
    if not out.parent.is_dir():
        raise InputError(f"out={out}: {out.parent} is no directory; make it first")


class _Log:
    """The rows so far, one after another in a file, and a line for each batch whose rows are all on the disk.

    Args:
        folder: of the rows.
        batches: file of the lines.
        num_bytes: of a row.
    """

    def __init__(self, folder: Path, batches: Path, num_bytes: int):
        self._values, self._indices, self._batches = folder / "values", folder / "indices", batches
        self.images, self.rows, self.unreadable = 0, 0, list[tuple[str, str]]()
        for file in (self._values, self._indices, self._batches):
            file.touch()
        whole = min(self._values.stat().st_size // num_bytes, self._indices.stat().st_size // 8)
        lines = []
        for line in whole_lines(self._batches):
            if (batch := json.loads(line))["rows"] > whole:
                break
            self._count(**batch)
            lines.append(line)
        write_synced(self._batches, b"".join(lines))
        for file, size in ((self._values, num_bytes), (self._indices, 8)):
            with file.open("r+b") as stream:
                stream.truncate(self.rows * size)

    def _count(self, images: int, rows: int, unreadable: Sequence[Sequence[str]]) -> None:
        self.images, self.rows = images, rows
        self.unreadable += [(name, reason) for name, reason in unreadable]

    def add(self, images: int, values: np.ndarray, indices: np.ndarray, unreadable: list[tuple[str, str]]) -> None:
        """A batch, after which so many images of the source are done; it counts when all of it is on the disk."""
        append_synced(self._values, np.ascontiguousarray(values).tobytes())
        append_synced(self._indices, indices.astype(np.int64).tobytes())
        line = {"images": images, "rows": self.rows + len(values), "unreadable": unreadable}
        append_synced(self._batches, json.dumps(line).encode() + b"\n")
        self._count(**line)

    def read(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        values = np.memmap(self._values, np.float32, "r", shape=(self.rows, *shape))
        return values, np.fromfile(self._indices, np.int64)


class _Display:
    """How far it is and how fast: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, first: int):
        self._total, self._first = total, first
        self._begin = self._said = time.perf_counter()
        columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting", total=total, completed=first)

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, images: int) -> None:
        now = time.perf_counter()
        rate = (images - self._first) / max(now - self._begin, 1e-9)
        text = f"{images:,} of {self._total:,} images, {rate:,.0f} images/s"
        self._bar.update(self._task, completed=images, description=text)
        if not console.is_terminal and now - self._said > _BETWEEN_LINES:
            self._said = now
            say(text)
