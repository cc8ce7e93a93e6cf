"""Every command as a function: `efficient_mae.knn(weights="runs/a")` does what `emae knn --weights runs/a` does.

They are made when they are asked for, of what `commands.py` names; `functions.pyi` lists them for those who read.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from efficient_mae.cli import explain_value
from efficient_mae.command import Result
from efficient_mae.commands import COMMANDS
from efficient_mae.config_files import read_recipe
from efficient_mae.errors import InputError, did_you_mean
from efficient_mae.going_on import settings_to_go_on_with


def __getattr__(name: str) -> Callable[..., Result]:
    for command in COMMANDS:
        if name == command.replace("-", "_").replace(" ", "_"):
            return _function(name, command)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _function(name: str, command: str) -> Callable[..., Result]:
    def function(**settings: Any) -> Result:
        return _run(command, settings)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""`emae {command}`: {COMMANDS[command].help}.

    Args:
        settings: by the names of its flags (`emae {command} --help`), and `config`, a recipe by name or a YAML file,
            which the others override.

    Returns:
        What `emae {command} --json` prints, as a dataclass.

    Raises:
        InputError: a `ValueError`: a setting that cannot work, or an input to be mended, where the command would end
            with status 2. What else ends a command otherwise than with 0 is an exception too.
    """
    return function


def _run(name: str, given: Mapping[str, Any]) -> Result:
    """Check settings as the command line does, and do it; the process is left as it is."""
    command, held = COMMANDS[name], dict(given)
    if (recipe := held.pop("config", None)) is not None:
        held = {**read_recipe(os.fspath(recipe), name), **held}
    held = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in held.items()}
    held = {**settings_to_go_on_with(name, given), **held}
    config = command.config_of(held.get("model"))
    known = {field.name: field for field in fields(config)}
    for key in held:
        if key not in known:
            raise InputError(f"{name}: unknown setting {key!r}{did_you_mean(key, known)}")
    lacking = [key for key, one in known.items() if one.default is one.default_factory is MISSING and key not in held]
    if lacking:
        raise InputError(f"{name}: {' and '.join(lacking)} must be given (emae {name} --help)")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config, as_group=False)
    try:
        settings = config(**vars(parser.parse_object(held)))
    except ArgumentError as error:
        types = {key: one.type for key, one in known.items()}
        raise InputError(f"{name}: {explain_value(str(error), types)}") from None
    return command.run(settings)
