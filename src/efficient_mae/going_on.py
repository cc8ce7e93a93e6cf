"""`emae pretrain --weights RUN --out ANOTHER`: a run that goes on from another one, with settings of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_mae.console import say
from efficient_mae.ranges import at_home

# Settings that are of the one run alone; and those of images, which the weights say, for these many channels.
_OWN = ("out", "weights", "channels", "resume_optimizer", "accept_changed_data")
_OF_IMAGES = ("mean", "std", "value_range", "bands")


def settings_to_go_on_with(command: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that aren't given, of the run of pre-training that `weights` names; none where it names no run.

    Where `model` or `config` is given, that says which model it is, and nothing is taken of the run.

    Args:
        command: that they are given to; none but `pretrain` goes on.
        given: settings by name.

    Raises:
        InputError: what the run was made with can't be read.
    """
    weights = given.get("weights")
    if command != "pretrain" or weights is None or {"model", "config"} & given.keys():
        return {}
    from efficient_mae.engine.settings import without_usual_warmup  # torch: help needn't wait for it
    from efficient_mae.engine.storage.run_directory import SETTINGS, read_settings
    from efficient_mae.tasks.pretrain_config import USUAL_WARMUP

    folder = Path(at_home(str(weights)))
    if not (folder / SETTINGS).is_file() or (record := read_settings(folder)).task != "pretrain":
        return {}
    settings = without_usual_warmup(record.settings, USUAL_WARMUP)
    anew = "warmup_epochs" not in given and settings != record.settings
    of_epochs = "; the warm-up, the usual one there, is the usual one for these epochs" if anew else ""
    say(f"settings that aren't given are those of {folder / SETTINGS}{of_epochs}")
    return {name: value for name, value in settings.items() if name not in (*_OWN, *_OF_IMAGES, *given)}
