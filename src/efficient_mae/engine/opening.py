"""What a run says, and writes down of the machine, before its first step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from efficient_mae.console import say
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.storage.checkpoint import set_aside
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.run_directory import MACHINE

if TYPE_CHECKING:
    from efficient_mae.engine.run import Run


def say_what_is_done(run: "Run", nothing_to_resume: bool) -> None:
    """What is trained on what, for how long, and what becomes of the images; `machine.json` says where.

    Args:
        nothing_to_resume: the run was begun before, and has no checkpoint.
    """
    replace_file(run.out / MACHINE, json.dumps(describe_machine(run.processes.device), indent=1).encode())
    config, images, steps = run.config, len(run.source), run.steps_per_epoch
    say(
        f"{run.title()}: {config.epochs} epochs of {steps} steps, "
        f"{run.batch_size} images a step, {config.precision} on {run.processes.device}"
        + (", the encoder as a CUDA graph" if run.graphs else "")
    )
    if left_out := images - steps * run.batch_size:
        per_epoch = f"{steps} steps of {run.batch_size}"
        say(f"an epoch's {per_epoch} leave out {left_out:,} of {images:,} images, others each time")
    say(run.images_become())
    if nothing_to_resume:
        say(f"{run.out} holds no checkpoint, so there is nothing to resume: from step 0")


def say_where_it_goes_on(run: "Run", step: int, damaged: Mapping[Path, str]) -> None:
    """After which step; checkpoints that are damaged, from file to what is wrong, are set aside."""
    for path, problems in damaged.items():
        say(f"{path} is damaged ({problems}): kept as {set_aside(path).name}, the one before is taken")
    say(f"resuming {run.out} after step {step} of {run.total_steps}")
