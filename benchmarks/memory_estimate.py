"""What a training step really takes of a host's memory, beside what is counted before the first one.

    python benchmarks/memory_estimate.py

Each setting takes three steps in a process of its own, which then says by how much its resident peak rose. Writes
results/memory_estimate.json, in which settings that were measured on this machine with these versions stay.
"""

import json
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from efficient_mae.children import end_with_main_process
from efficient_mae.engine.machine.distributed import join_processes
from efficient_mae.engine.machine.facts import describe_machine, keep_freed_memory
from efficient_mae.engine.machine.memory import GIB, BatchMemory
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.tasks.pretrain import make_pretrain_run
from efficient_mae.tasks.pretrain_config import PretrainConfig

RESULT = Path(__file__).parent / "results" / "memory_estimate.json"
STEPS = 3
MEASURED = {"counted", "taken", "ratio"}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"model": "mae_vit_tiny_patch4", "img_size": 224, "batch_size": 6},
    {"model": "mae_vit_tiny_patch4", "img_size": 224, "batch_size": 24},
    {"model": "mae_vit_tiny_patch4", "img_size": 28, "batch_size": 1024},
    {"model": "mae_vit_tiny_patch16", "batch_size": 512},
    {"model": "mae_vit_small_patch16", "batch_size": 128},
    {"model": "mae_vit_small_patch16", "batch_size": 128, "mask_ratio": 0.5, "beta": None},
    {"model": "mae_vit_base_patch16", "batch_size": 32},
    {"model": "mae_vit_base_patch16", "batch_size": 96},
    {"model": "mae_vit_base_patch16", "batch_size": 96, "grad_checkpointing": True},
    {"model": "mae_vit_base_patch16", "batch_size": 128, "accum_iter": 4},
    {"model": "mae_vit_base_patch16", "batch_size": 32, "mask_ratio": 0.75, "beta": None, "gamma": 0.0},
    {"model": "mae_vit_large_patch16", "batch_size": 16},
    {"model": "mae_vit_base_patch16", "batch_size": 16, "precision": "bf16"},
    {"model": "mae_vit_small_patch16", "batch_size": 96, "precision": "bf16"},
)


def measure(settings: dict[str, Any]) -> tuple[float, float]:
    """Bytes counted and taken by a step with these settings."""
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        own = {"data": "fashion-mnist-sample", "out": folder, "device": "cpu", "precision": "fp32", "num_workers": 0}
        config = PretrainConfig(**own | settings)
        with join_processes("cpu") as processes:
            run = make_pretrain_run(config, processes)
            plain = hollow(run.model, torch.device("meta"))
            step = run.prepare()
            data = run.host_dataset()
            memory = BatchMemory(run.config, processes, step.optimizer, plain, step.objective, data, unit=run.unit)
            micro = run.batch_size // config.accum_iter
            counted = memory.needed(micro)
            before = _resident()
            micro_batches = run.batches(0)
            for index in range(STEPS):
                step(index, list(islice(micro_batches, config.accum_iter)))
    return counted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    machine = describe_machine(torch.device("cpu"))
    written = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = written["gib"] if written.get("machine") == machine else []
    done = [{name: row[name] for name in row.keys() - MEASURED} for row in rows]
    for settings in (one for one in SETTINGS if one not in done):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_main_process) as process:
            counted, taken = process.submit(measure, settings).result()
        figures = {"counted": round(counted / GIB, 3), "taken": round(taken / GIB, 3)}
        rows.append({**settings, **figures, "ratio": round(taken / counted, 3)})
        print(rows[-1], flush=True)
        result = {"date": date.today().isoformat(), "machine": machine, "gib": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
