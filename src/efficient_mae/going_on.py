"""`emae pretrain --weights RUN --out ANOTHER`: a run that goes on from another one, with settings of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_mae.console import say
from efficient_mae.ranges import at_home

# Settings that are of the one run alone, or that say the model's name to the parser.
_OWN = ("out", "weights", "channels", "resume_optimizer")


def with_settings_of_run(arguments: list[str], given: Mapping[str, str]) -> list[str]:
    """The arguments with the settings that aren't given of the run that `--weights` names, if that is pre-training's.

    Where `--model` or `--config` is given, that says which model it is, and nothing is taken of the run.

    Args:
        given: flags and their values.
    """
    if arguments[:1] != ["pretrain"] or "--weights" not in given or {"--model", "--config"} & given.keys():
        return arguments
    from efficient_mae.engine.storage.run_directory import (
        SETTINGS,
        read_settings,
    )  # torch, which help needn't wait for

    folder = Path(at_home(given["--weights"]))
    if not (folder / SETTINGS).is_file() or (record := read_settings(folder)).task != "pretrain":
        return arguments
    kept = {name: value for name, value in record.settings.items() if name not in _OWN and f"--{name}" not in given}
    say(f"settings that aren't given are those of {folder / SETTINGS}")
    return ["pretrain", *(f"--{name}={_spelt(value)}" for name, value in kept.items()), *arguments[1:]]


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
