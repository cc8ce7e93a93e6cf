"""Host memory of a run of 5,000 steps, and what ten million names cost: python benchmarks/memory.py [--parts ...]

Writes results/memory.json. Memory is what the kernel says in /proc/PID/smaps_rollup. `held` is what a leak adds to:
a process' anonymous pages, those that it still shares with the one that forked it among them, and its part of shared
memory; the code of libraries, which is read in little by little, is left out. `private` is what a process has for
itself alone.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from efficient_mae.data import EvalTransform, Reading, UnreadableImage, open_source
from efficient_mae.data.batches.datasets import EvalDataset
from efficient_mae.data.batches.loader import _loader
from efficient_mae.data.sources import shard_index
from efficient_mae.data.sources.folder import FolderSource
from efficient_mae.data.sources.names import PackedNames
from efficient_mae.engine.machine.facts import describe_machine

RESULT = Path(__file__).parent / "results" / "memory.json"
# Share of the steps that is left out at the beginning: pools and caches fill; matplotlib takes ten panels for it.
WARM_UP = 0.2
# Means of so many stretches of a run are taken for independent of each other.
STRETCHES = 20
MODEL = {
    "model": "mae_vit_tiny_patch16", "img_size": 64, "depth": 2, "decoder_depth": 1, "decoder_embed_dim": 64,
    "precision": "fp32", "device": "cpu",
}  # fmt: skip


def memory(pid: int) -> dict[str, int]:
    """Bytes: `held` and `private`, of a process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kib = line.split()[:2]
        fields[name] = int(kib) * 1024
    return {
        "held": fields["Anonymous:"] + fields["Pss_Shmem:"],
        "private": fields["Private_Clean:"] + fields["Private_Dirty:"],
    }


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def flat(steps: int, folder: Path) -> dict[str, object]:
    """Memory of `emae pretrain` against its step: slopes in bytes a step."""
    rng = np.random.default_rng(0)
    data = folder / "images"
    data.mkdir()
    for number in range(800):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(data / f"{number:04}.jpg")
    for number in (3, 300, 600):
        (data / f"{number:04}.jpg").write_bytes(b"no image")
    batch = 16
    flags = MODEL | {
        "data": data, "out": folder / "run", "batch_size": batch, "epochs": steps // (800 // batch), "num_workers": 2,
        "log_every": 10, "panel_every": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "efficient_mae", "pretrain"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows: list[tuple[int, int, list[int]]] = []
    metrics = folder / "run" / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.25)
        try:
            step = json.loads(metrics.read_text().splitlines()[-1])["step"]
            workers = [memory(pid)["held"] for pid in children(process.pid)]
            if len(workers) == 2:
                rows.append((step, memory(process.pid)["held"], workers))
        except (OSError, IndexError, ValueError):  # not begun, or just ended
            continue
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}")
    done = rows[-1][0]
    kept = [row for row in rows if row[0] >= WARM_UP * done]
    at = np.array([row[0] for row in kept])
    series = {"main": [row[1] for row in kept]} | {f"worker_{n}": [row[2][n] for row in kept] for n in range(2)}
    return {
        "steps": done,
        "readings": len(kept),
        "seconds": round(time.monotonic() - began),
        **{name: slope(at, np.array(values)) for name, values in series.items()},
    }


def slope(step: np.ndarray, bytes_: np.ndarray) -> dict[str, float]:
    """Least-squares slope through the means of stretches of the run, and its standard error."""
    parts = np.array_split(np.arange(len(step)), STRETCHES)
    x, y = (np.array([values[part].mean() for part in parts]) for values in (step, bytes_))
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    residual = y - y.mean() - slope * (x - x.mean())
    error = np.sqrt((residual**2).sum() / (len(x) - 2) / spread)
    return {
        "mb": [round(value / 1e6, 2) for value in y],
        "bytes_a_step": slope,
        "standard_error": error,
    }


class Names:
    """As many names as wished, of files that aren't there: reading one tells its name and no more."""

    def __init__(self, count: int) -> None:
        self.name, self.classes, self.why_unlabelled = "names", None, "none of them is one"
        self.names = PackedNames(b"n%08d/n%08d_%d.JPEG" % (n // 1300, n // 1300, n) for n in range(count))

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int):
        for other in range(index, len(self.names), 50_000):  # reach into every part of the block
            self.names[other]
        raise UnreadableImage(str(os.getpid()), json.dumps(memory(os.getpid())))

    def image(self, index: int):
        return self.open(index)

    def label(self, index: int):
        return None

    def sample_name(self, index: int) -> str:
        return self.names[index].decode()


def names(count: int) -> dict[str, object]:
    """Seconds to hold so many names, and each worker's own memory, with them and with ten."""
    began = time.monotonic()
    source = Names(count)
    result: dict[str, object] = {"names": count, "seconds_to_pack": time.monotonic() - began}
    result["block_mb"] = (source.names._names.nbytes + source.names._ends.nbytes) / 1e6
    for context in ("fork", "forkserver", "spawn"):
        own = {}
        for what, held in (("ten", Names(10)), ("all", source)):
            began = time.monotonic()
            data = EvalDataset(held, EvalTransform((8, 8), Reading(3)))
            batches = [[n % len(held)] * 8 for n in range(400)]
            loader = _loader(data, batches, 2, False, 2, context)
            seen: dict[str, list[int]] = {}
            for batch in loader:
                seen.setdefault("start", []).append(time.monotonic() - began)  # pyright: ignore
                for pid, reading in batch.damaged:
                    seen.setdefault(pid, []).append(json.loads(reading)["private"])
            start = seen.pop("start")[0]
            own[what] = {
                "seconds_to_first_batch": start,
                "private_mb_at_first": [round(values[0] / 1e6, 1) for values in seen.values()],
                "private_mb_at_last": [round(values[-1] / 1e6, 1) for values in seen.values()],
            }
            del loader
        result[context] = own
    return result


def listing(count: int, folder: Path) -> dict[str, float]:
    """Seconds to list a folder of real (empty) files, in subfolders of 1,000."""
    for number in range(count // 1000):
        sub = folder / f"{number:05}"
        sub.mkdir(parents=True)
        for file in range(1000):
            (sub / f"{file:05}.jpg").touch()
    began = time.monotonic()
    source = FolderSource(folder, "x")
    seconds = time.monotonic() - began
    return {"files": len(source), "seconds": seconds, "seconds_for_ten_million": seconds / len(source) * 1e7}


def shards(count: int, folder: Path) -> dict[str, float]:
    """Seconds to open shards of 10,000 small images, by reading their headers and by the index that is kept."""
    folder.mkdir()
    for number in range(count // 10_000):
        with tarfile.open(folder / f"{number:04}.tar", "w") as tar:
            for sample in range(10_000):
                info = tarfile.TarInfo(f"{number:04}{sample:05}.jpg")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        found = len(open_source(f"wds:{folder}"))
        seconds.append(time.monotonic() - began)
    size = sum(file.stat().st_size for file in shard_index.cache_folder().iterdir())
    return {
        "samples": found,
        "seconds_by_headers": seconds[0],
        "seconds_by_index": seconds[1],
        "index_bytes_a_sample": size / found,
        "seconds_for_ten_million_by_headers": seconds[0] / found * 1e7,
        "seconds_for_ten_million_by_index": seconds[1] / found * 1e7,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--names", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--parts", nargs="+", default=["flat", "names", "folder", "shards"], help="others are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        parts = {
            "flat": lambda: flat(given.steps, folder),
            "names": lambda: names(given.names),
            "folder": lambda: listing(given.files, folder / "files"),
            "shards": lambda: shards(given.files, folder / "shards"),
        }
        result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        result |= {"date": date.today().isoformat(), "machine": describe_machine(torch.device("cpu"))}
        result |= {part: parts[part]() for part in given.parts}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
