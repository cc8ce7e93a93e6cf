"""The recipes that ship with the package: what papers and this project train with, by name."""

from pathlib import Path
from typing import Any

import yaml

from efficient_mae.ranges import with_tuples


def recipes() -> dict[str, Path]:
    """Their files, by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}


def recipe_settings(name: str) -> dict[str, Any]:
    """What a recipe sets."""
    return with_tuples(yaml.safe_load(recipes()[name].read_text()))
