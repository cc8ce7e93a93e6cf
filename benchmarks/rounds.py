"""Kernels that do the same, timed in turn: what attention_cpu.py, attention_gpu.py and linear_cpu.py share."""

import argparse
import datetime
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from efficient_mae.engine.machine.facts import describe_machine


def read_arguments(description: str, rounds: int) -> argparse.Namespace:
    """`--rounds` and `--out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def medians(
    kernels: dict[str, Callable], milliseconds: Callable[[Callable, int], float], rounds: int
) -> dict[str, float]:
    """Of each kernel, the median of the milliseconds that it takes; given it and the round's number."""
    taken: dict[str, list[float]] = {name: [] for name in kernels}
    for number in range(rounds):
        for name, kernel in kernels.items():
            taken[name].append(milliseconds(kernel, number))
    return {name: round(statistics.median(values), 2) for name, values in taken.items()}


def report(found: dict[str, dict[str, float]], out: Path | None, device: str = "cpu") -> None:
    """Print what was found, with date and machine; and write it, if told where."""
    machine = describe_machine(torch.device(device))
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "milliseconds": found}
    print(json.dumps(result, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
