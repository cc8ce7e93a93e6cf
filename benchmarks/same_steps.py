"""Whether two commits train alike: loss and gradient norm of the first 50 steps of five configurations, to the bit.

    python benchmarks/same_steps.py BEFORE [AFTER]

BEFORE and AFTER are commits; without AFTER it is HEAD. Every run is `emae pretrain` on bundled images, in a process
whose sources are the commit's. Exit status 1 if a number differs. Writes results/same_steps.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.machine.facts import describe_machine

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "same_steps.json"
STEPS = 50
FIGURES = ("loss", "grad_norm", "lr")
# Patches of 16, 14 x 14 a picture, as in the paper.
COMMON = {
    "data": "fashion-mnist-sample", "model": "mae_vit_tiny_patch16", "img_size": 224, "in_chans": 1, "depth": 2,
    "decoder_depth": 2, "epochs": 1, "batch_size": 48, "warmup_epochs": 0, "device": "cpu", "num_workers": 1,
    "log_every": 1, "checkpoint_every": 1000, "precision": "fp32",
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mae-075-fp32": {"mask_ratio": 0.75, "gamma": 0, "beta": "null"},
    "efficient-085-fp32": {},
    "efficient-085-bf16-accum-2": {"precision": "bf16", "accum_iter": 2},
    "mae-075-bf16-repeats-4": {
        "mask_ratio": 0.75, "gamma": 0, "beta": "null", "precision": "bf16", "repeats": 4,
    },
    "efficient-085-fp32-two-processes": {"processes": 2},
}  # fmt: skip


@contextmanager
def sources_of(commit: str) -> Iterator[Path]:
    """The sources of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--force", "--detach", str(tree), commit], check=True, capture_output=True)
        try:
            yield tree / "src"
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def train(sources: Path, configuration: dict[str, Any], out: Path) -> list[list[float]]:
    """The figures of the first steps."""
    settings = COMMON | configuration
    processes = settings.pop("processes", 1)
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    flags = [f"--{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "efficient_mae", "pretrain", f"--out={out}", *flags]
    # What is imported is these sources, or the comparison would compare nothing.
    where = [sys.executable, "-c", "import efficient_mae; print(efficient_mae.__file__)"]
    found = subprocess.run(where, env=environment, cwd=out.parent, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(sources), found
    metrics, quiet = out / "metrics.jsonl", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, cwd=out.parent, **quiet) as process:
        while len(read_metrics(metrics)) < STEPS:
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
            time.sleep(0.2)
        process.terminate()
    return [[row[name] for name in FIGURES] for row in read_metrics(metrics)[:STEPS]]


def main() -> int:
    """Compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--only", nargs="*", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    given = parser.parse_args()
    named = ["git", "-C", str(ROOT), "rev-parse", given.before, given.after]
    commits = subprocess.run(named, check=True, capture_output=True, text=True).stdout.split()
    found: dict[str, Any] = {}
    with sources_of(commits[0]) as before, sources_of(commits[1]) as after:
        for name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs = (
                    train(sources, CONFIGURATIONS[name], Path(folder) / side)
                    for side, sources in (("after", after), ("before", before))
                )
            differing = {
                figure: [
                    step
                    for step, (here, there) in enumerate(zip(ours, theirs, strict=True), 1)
                    if here[n] != there[n]
                ]
                for n, figure in enumerate(FIGURES)
            }
            found[name] = {"steps": len(ours), "last": dict(zip(FIGURES, ours[-1], strict=True))}
            found[name] |= {"differing_steps": {figure: len(steps) for figure, steps in differing.items()}}
            found[name] |= {
                "first_difference": min((steps[0] for steps in differing.values() if steps), default=None)
            }
            print(f"{name}: {len(ours)} steps, differing: {found[name]['differing_steps']}", flush=True)
    machine = describe_machine(torch.device("cpu"))
    result = {"date": date.today().isoformat(), "before": commits[0], "after": commits[1], "machine": machine}
    RESULT.write_text(json.dumps({**result, "configurations": found}, indent=1) + "\n")
    return int(any(one["first_difference"] is not None for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
