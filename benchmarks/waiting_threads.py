"""What it costs that threads which wait spin: training steps alone, and beside a program that keeps every core busy.

    python benchmarks/waiting_threads.py

Takes turns between OpenMP's own waiting, `GOMP_SPINCOUNT=1000` and `OMP_WAIT_POLICY=passive`,
each time in a process of its own, whose median of 4 steps counts. Writes results/waiting_threads.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

import efficient_mae as emae
from efficient_mae.engine.machine.facts import available_cores, describe_machine

RESULT = Path(__file__).parent / "results" / "waiting_threads.json"
WAYS = {"spinning": {}, "sleeping soon": {"GOMP_SPINCOUNT": "1000"}, "sleeping": {"OMP_WAIT_POLICY": "passive"}}
TURNS, STEPS = 3, 4


def measure() -> None:
    """Print the median seconds of a step."""
    model = emae.create_model("mae_vit_small_patch16", img_size=112)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, plan = torch.randn(32, 3, 112, 112), model.plan(32, torch.Generator().manual_seed(0))
    taken = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        model(images, plan).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - begin)
    print(statistics.median(taken[1:]))


def main() -> None:
    seconds: dict[str, dict[str, list[float]]] = {}
    for busy in (False, True):
        found = seconds.setdefault("beside a busy program" if busy else "alone", {name: [] for name in WAYS})
        others = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(available_cores() * busy)
        ]
        try:
            for _ in range(TURNS):
                for name, variables in WAYS.items():
                    environment = os.environ | variables
                    done = subprocess.run(
                        [sys.executable, __file__, "measure"], env=environment, capture_output=True, check=True
                    )
                    found[name].append(round(float(done.stdout), 4))
        finally:
            for other in others:
                other.kill()
    slower = {
        where: {
            name: round(statistics.median(times) / statistics.median(found["spinning"]), 3)
            for name, times in found.items()
        }
        for where, found in seconds.items()
    }
    content = {"date": date.today().isoformat(), "machine": describe_machine(torch.device("cpu"))}
    RESULT.write_text(json.dumps(content | {"seconds": seconds, "of spinning": slower}, indent=1) + "\n")
    print(json.dumps(slower, indent=1))


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
