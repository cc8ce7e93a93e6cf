"""What `--config` names: a recipe, a YAML file, or the settings of a run."""

from pathlib import Path
from typing import Any

import yaml

from efficient_mae.engine.storage.plain_files import parse_yaml
from efficient_mae.errors import InputError, did_you_mean
from efficient_mae.ranges import at_home
from efficient_mae.recipes import recipes


def find_recipe(name: str, command: str | None) -> str:
    """The path of a recipe; of a run's `config.yaml`, which also says what it is of, the settings as YAML.
    Its warm-up is settled anew, where it was the usual one for its epochs.

    Likewise of a file for `emae report` that calls its run `weights`, as earlier versions did.

    Raises:
        InputError: neither a file nor a recipe, or the settings of a run of something else.
    """
    name = at_home(name)
    if Path(name).is_file():
        content = parse_yaml(Path(name).read_bytes(), f"config={name}")  # jsonargparse would choke on some
        if command == "report" and isinstance(content, dict) and "weights" in content and "run" not in content:
            return yaml.safe_dump({"run" if key == "weights" else key: value for key, value in content.items()})
        if not isinstance(content, dict) or "task" not in content:
            return name
        if content["task"] != command:
            raise InputError(f"config={name}: of a run of {content['task']}, not of {command}")
        settings = {key: value for key, value in content.items() if key not in ("task", "version")}
        if command == "pretrain":
            from efficient_mae.engine.settings import without_usual_warmup  # torch: help needn't wait for it
            from efficient_mae.tasks.pretrain_config import USUAL_WARMUP

            settings = without_usual_warmup(settings, USUAL_WARMUP)
        return yaml.safe_dump(settings)
    if name in recipes():
        return str(recipes()[name])
    raise InputError(f"config={name!r}: no such file, and no recipe of that name{did_you_mean(name, recipes())}")


def read_recipe(name: str, command: str | None) -> dict[str, Any]:
    """What a recipe, or the YAML file of this path, sets for a command.

    Raises:
        InputError: as :func:`find_recipe`, or it holds no settings.
    """
    recipe = find_recipe(name, command)
    settings = parse_yaml(recipe.encode() if "\n" in recipe else Path(recipe).read_bytes(), f"config={name}")
    if not isinstance(settings, dict | None):
        raise InputError(f"config={name}: holds no settings; write one a line, as `epochs: 100`")
    return settings or {}
