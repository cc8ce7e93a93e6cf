"""Runs whose batch doesn't fit, and runs whose batch barely does, under a limit that the kernel holds them to.

    python benchmarks/memory_limits.py

As root, on Linux with control groups of version 1. A limit is set by what is counted for a step: 0.9 times that
beside what the process takes before its first step, which cannot do, and 1.25 times, which barely may. Writes
results/memory_limits.json: the exit status (-9: killed by the kernel), and what was said of memory.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.machine.memory import GIB, BatchMemory
from efficient_mae.tasks.pretrain import make_pretrain_run
from efficient_mae.tasks.pretrain_config import PretrainConfig

RESULT = Path(__file__).parent / "results" / "memory_limits.json"
GROUPS = Path("/sys/fs/cgroup/memory")
# What `emae pretrain` takes before its first step, beside weights: libraries, mostly.
LIBRARIES = 0.55 * GIB
SHARES = (0.9, 1.25)
COMMON = {
    "data": "fashion-mnist-sample", "device": "cpu", "precision": "fp32", "num_workers": 0, "epochs": 1,
    "log_every": 1,
}  # fmt: skip
SETTINGS: tuple[dict[str, Any], ...] = (
    {"model": "mae_vit_tiny_patch4", "img_size": 28, "batch_size": 1024},
    {"model": "mae_vit_tiny_patch4", "img_size": 112, "batch_size": 32},
    {"model": "mae_vit_tiny_patch16", "img_size": 224, "batch_size": 256},
    {"model": "mae_vit_small_patch16", "img_size": 224, "batch_size": 64},
    {"model": "mae_vit_small_patch16", "img_size": 224, "batch_size": 256, "accum_iter": 4},
    {"model": "mae_vit_small_patch16", "img_size": 112, "batch_size": 256},
    {"model": "mae_vit_small_patch8", "img_size": 112, "batch_size": 64, "mask_ratio": 0.75, "beta": "null"},
    {"model": "mae_vit_base_patch16", "img_size": 224, "batch_size": 16},
    {"model": "mae_vit_base_patch16", "img_size": 224, "batch_size": 64, "grad_checkpointing": True},
    {"model": "mae_vit_base_patch16", "img_size": 112, "batch_size": 128, "in_chans": 1},
)


def needed(settings: dict[str, Any]) -> tuple[float, float]:
    """Bytes of the weights, and what is counted for a step."""
    given = {name: None if value == "null" else value for name, value in (COMMON | settings).items()}
    run = make_pretrain_run(PretrainConfig(**given, out="unused"), ALONE)
    optimizer, data = run.build_optimizer(), run.host_dataset()
    memory = BatchMemory(run.config, ALONE, optimizer, run.model, run.objective(), data, unit=run.unit)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
    return weights, memory.needed(run.batch_size // run.config.accum_iter)


@contextmanager
def control_group(most: float) -> Iterator[Path]:
    """A group whose processes may have so many bytes between them."""
    group = GROUPS / f"emae-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(int(most)))
    try:
        yield group
    finally:
        group.rmdir()


def attempt(settings: dict[str, Any], most: float, folder: Path) -> dict[str, Any]:
    """Train within so many bytes, for a hundred seconds at most."""
    flags = [f"--{name}={json.dumps(v) if isinstance(v, bool) else v}" for name, v in (COMMON | settings).items()]
    command = [sys.executable, "-m", "efficient_mae", "pretrain", f"--out={folder}", *flags]
    with control_group(most) as group:
        enter = f"echo $$ > {group}/cgroup.procs; exec timeout --signal=INT 100 {' '.join(command)}"
        done = subprocess.run(["bash", "-c", enter], capture_output=True, text=True)
    rows = folder / "metrics.jsonl"
    said = [line for line in done.stderr.splitlines() if "take about" in line]
    return {
        "status": -9 if done.returncode == 128 + 9 else done.returncode,
        "steps": len(rows.read_text().splitlines()) if rows.exists() else 0,
        "said": said[-1] if said else "",
    }


def main() -> None:
    rows = []
    for settings, share in itertools.product(SETTINGS, SHARES):
        weights, step = needed(settings)
        most = LIBRARIES + weights + share * step
        with tempfile.TemporaryDirectory() as folder:
            outcome = attempt(settings, most, Path(folder) / "run")
        rows.append({**settings, "counted": round(step / GIB, 3), "share": share, **outcome})
        print(rows[-1], flush=True)
        result = {"date": date.today().isoformat(), "machine": describe_machine(torch.device("cpu")), "runs": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
