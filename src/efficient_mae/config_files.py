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

    Raises:
        InputError: neither a file nor a recipe, or the settings of a run of something else.
    """
    name = at_home(name)
    if Path(name).is_file():
        content = parse_yaml(Path(name).read_bytes(), f"config={name}")  # jsonargparse would choke on some
        if not isinstance(content, dict) or "task" not in content:
            return name
        if content["task"] != command:
            raise InputError(f"config={name}: of a run of {content['task']}, not of {command}")
        return yaml.safe_dump({key: value for key, value in content.items() if key not in ("task", "version")})
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
