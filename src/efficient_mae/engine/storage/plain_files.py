"""YAML and JSON files of unknown origin, read as plain values: whatever is wrong with one is one line."""

import json
from typing import Any

import yaml

from efficient_mae.errors import InputError

# A configuration is a flat list of settings, some of them lists.
_DEEPEST = 20


def parse_yaml(content: bytes, name: str) -> Any:
    """The value of a YAML document.

    Args:
        content: of the file.
        name: what to call it in an error.

    Raises:
        InputError: no YAML, tags that stand for objects, deep nesting, or aliases: a few lines of them can stand for
            more values than fit into the memory.
    """
    try:
        text = content.decode()
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{name}: the alias *{event.anchor} isn't understood here: write the value out")
            if depth > _DEEPEST:
                raise InputError(f"{name}: nested more than {_DEEPEST} deep; settings are a flat list")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not readable as YAML ({_one_line(error)})") from None


def parse_json(content: bytes | str, name: str) -> Any:
    """The value of a JSON document; arguments as for :func:`parse_yaml`.

    Raises:
        InputError: no JSON, or nested too deep.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not readable as JSON ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
