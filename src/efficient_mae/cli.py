"""The command `emae`: one parser, and whatever goes wrong as one line and an exit status."""

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from efficient_mae import __version__
from efficient_mae.children import stop_with_parent
from efficient_mae.commands import COMMANDS, GROUPS, Command
from efficient_mae.config_files import find_recipe, read_recipe
from efficient_mae.console import PlainConsole, printable, say
from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.machine.spokesman import may_say, see_out
from efficient_mae.errors import (
    DivergedError,
    InputError,
    LostProcessError,
    Stopped,
    WorkerFailure,
    broken_library,
    did_you_mean,
)
from efficient_mae.going_on import settings_to_go_on_with
from efficient_mae.ranges import Settings, Switch, describe, shown
from efficient_mae.recipes import recipes

# What a disk says that cannot be written to, by the system's numbers.
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the system allows here",
    errno.EROFS: "the disk has become one that can only be read",
    errno.EIO: "the disk fails",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emae`; return its exit status: 0 done, 2 for an input that the user can mend, 1 otherwise."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stop_with_parent()  # torchrun, which would have ended this process with itself
    try:
        return _run(given)
    except InputError as error:
        return _fail(str(error), 2)
    except DivergedError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command again resumes from the last checkpoint", 130)
    except Stopped as stopped:
        return _fail(str(stopped), stopped.status)
    except LostProcessError as lost:
        # All that are left say so: the one that speaks for them may be the one that is gone.
        print(f"emae: {lost}; the same command again resumes from the last checkpoint", file=sys.stderr, flush=True)
        import torch  # loaded long ago, by what was lost

        if torch.cuda.is_initialized():
            os._exit(1)  # the device waits for what never comes, and an orderly end would wait for the device
        return 1
    except OSError as error:
        if error.errno in _DISK:
            reason = f"{_DISK[error.errno]} ({error.filename})"
            return _fail(f"{reason}; the last checkpoint is intact: mend that, then run again", 1)
        traceback.print_exc()
        return 1
    except WorkerFailure as error:
        print(f"emae: {error}", file=sys.stderr)  # only the process whose worker it is knows of it
        return 1
    except Exception as error:
        if (reason := _reason(error)) is not None:
            return _fail(reason, 2)
        traceback.print_exc()
        return 1


def _reason(error: Exception) -> str | None:
    """What the user can mend, of what libraries say in their own words."""
    if isinstance(error, ImportError):  # of what is imported when it is used
        return broken_library(error)
    if isinstance(error, RuntimeError | MemoryError):
        from efficient_mae.engine.machine.memory import asked_too_much  # with torch, which has been imported

        return asked_too_much(error)
    return None


def _run(arguments: list[str]) -> int:
    if (name := called(arguments)) is not None:
        for variable, value in COMMANDS[name].environment.items():
            os.environ.setdefault(variable, value)
    arguments = _going_on(arguments)
    config = config_of(arguments)
    parser = build_parser(arguments)
    try:
        spelt = _with_plain_values(_with_scratch(_with_run(_with_study_name(arguments))))
        parsed = parser.parse_args(_with_recipes(spelt))
    except ArgumentError as error:
        raise InputError(explain(str(error), arguments)) from None
    name, own = parsed.subcommand, parsed[parsed.subcommand]
    if name in GROUPS:
        name, own = f"{name} {own.subcommand}", own[own.subcommand]
    command, values = COMMANDS[name], vars(own)
    assert config is not None
    settings = config(**{field.name: values[field.name] for field in fields(config)})
    command.prepare(settings)
    result = command.run(settings)
    if place().rank > 0:
        return 0
    if values["json"]:
        print(json.dumps(result.plain()))
    else:
        command.show(result, PlainConsole(soft_wrap=True))
    return result.status


def called(arguments: Sequence[str]) -> str | None:
    """The subcommand that these arguments begin with, if there is one."""
    return next((name for words in (1, 2) if (name := " ".join(arguments[:words])) in COMMANDS), None)


def config_of(arguments: Sequence[str]) -> type[Settings] | None:
    """The dataclass of the settings of the subcommand that is called, for the model that is named if one is.

    Raises:
        InputError: an unknown model, or a library that the subcommand needs cannot be imported.
    """
    name = called(arguments)
    if name is None:
        return None
    model = None
    for flag, value in _pairs(arguments):  # the last one counts
        if flag == "--model":
            model = value
        elif flag == "--config":
            model = read_recipe(value, name).get("model", model)
    try:
        return COMMANDS[name].config_of(model if isinstance(model, str) else None)
    except InputError:
        raise
    except Exception as error:  # one that is half installed, or was built for another version, raises anything
        if (reason := broken_library(error)) is None:
            raise
        raise InputError(reason) from None


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) in the order in which they are given, and pairs that are none."""
    for first, second in pairwise([*arguments, ""]):
        flag, equals, value = first.partition("=")
        yield flag, value if equals else second


def build_parser(arguments: Sequence[str]) -> ArgumentParser:
    """The parser of all subcommands.

    Args:
        arguments: begin with the subcommand whose flags it knows: for those of all, all would have to be imported.

    Raises:
        InputError: as :func:`config_of`.
    """
    name, config = called(arguments), config_of(arguments)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="emae", version=__version__, exit_on_error=False, description=_DESCRIPTION)
    subcommands = parser.add_subcommands(required=True)
    groups = {}
    for group, description in GROUPS.items():
        middle = ArgumentParser(exit_on_error=False, description=description)
        subcommands.add_subcommand(group, middle, help=description)
        groups[group] = middle.add_subcommands(required=True)
    for each, command in COMMANDS.items():
        own = ArgumentParser(exit_on_error=False, description=command.help)
        if each == name and config is not None:
            _add_flags(own, command, config)
        group, _, short = each.rpartition(" ")
        (groups[group] if group else subcommands).add_subcommand(short, own, help=command.help)
    return parser


def _add_flags(parser: ArgumentParser, command: Command, config: type[Settings]) -> None:
    try:
        _ = command.run
    except Exception as error:  # one that is half installed, or was built for another version, raises anything
        if (reason := broken_library(error)) is None:
            raise
        raise InputError(reason) from None
    names = ", ".join(recipes())
    parser.add_argument("--config", action="config", help=f"recipe ({names}) or YAML file; flags override")
    parser.add_class_arguments(config, as_group=False)
    for action in parser._actions:
        if declared := describe(config.ranges.get(action.dest)):
            action.help = f"{action.help}; {declared}"
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


_DESCRIPTION = "Pre-train Vision Transformers as masked autoencoders, at mask ratio 0.85 and above."


def _with_scratch(arguments: list[str]) -> list[str]:
    """The arguments with `--from scratch` turned into the flag it stands for (`from` can't be a Python name).

    Raises:
        InputError: from something else.
    """
    spaced = [part for argument in arguments for part in _split_from(argument)]
    resolved = []
    for before, argument in zip(["", *spaced], spaced, strict=False):
        if before == "--from" and argument != "scratch":
            raise InputError(f"from={argument!r}: only --from scratch; for trained weights give --weights PATH")
        resolved += ["--from_scratch"] if argument == "--from" else ["true"] if before == "--from" else [argument]
    return resolved


def _going_on(arguments: list[str]) -> list[str]:
    """The arguments, with those of the run that a new one goes on from where they aren't given."""
    given = {flag.removeprefix("--"): value for flag, value in _pairs(arguments) if flag.startswith("--")}
    kept = settings_to_go_on_with(called(arguments), given)
    spelt = {name: value if isinstance(value, str) else json.dumps(value) for name, value in kept.items()}
    return [*arguments[:1], *(f"--{name}={value}" for name, value in spelt.items()), *arguments[1:]]


def _with_study_name(arguments: list[str]) -> list[str]:
    """The arguments with `study NAME` turned into the flag it stands for."""
    named = arguments[:1] == ["study"] and len(arguments) > 1 and not arguments[1].startswith("-")
    return ["study", "--name", *arguments[1:]] if named else arguments


def _with_plain_values(arguments: list[str]) -> list[str]:
    """The arguments with values as people write them: a switch alone is on, and `0.2,1.0` are several numbers."""
    config = config_of(arguments)
    types = {f"--{field.name}": field.type for field in fields(config)} if config else {}
    resolved = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        resolved.append(argument)
        if types.get(argument) in (bool, Switch) and following.startswith("--"):
            resolved.append("true")
    for number, argument in enumerate(resolved):
        flag, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        declared = types.get(flag or resolved[number - 1])
        kind, parts = str(declared), () if get_origin(declared) is tuple else map(str, get_args(declared))
        single = any("tuple" not in part and re.search(r"\b(int|float)\b", part) for part in parts)
        # Commas, at least: where any number of numbers is meant, one may stand alone, unless it means itself.
        fewest = 0 if ", ...]" in kind and not single else 1
        if "tuple" in kind and re.fullmatch(rf"[-+.\de]+(,[-+.\de]+){{{fewest},}}", value):
            resolved[number] = f"{flag}{equals}[{value}]"
    return resolved


def _with_run(arguments: list[str]) -> list[str]:
    """The arguments with `report --weights`, as `report --run` was called before, turned into that."""
    spelt = [re.sub(r"^--weights(?=$|=)", "--run", argument) for argument in arguments]
    if arguments[:1] != ["report"] or spelt == arguments:
        return arguments
    say("emae: report --weights is now called --run, as in emae replay; the old name still works")
    return spelt


def _split_from(argument: str) -> list[str]:
    return ["--from", argument.removeprefix("--from=")] if argument.startswith("--from=") else [argument]


def _with_recipes(arguments: list[str]) -> list[str]:
    """The arguments with `--config NAME` turned into the recipe's path.

    Raises:
        InputError: neither a file nor a recipe, or the settings of a run of something else.
    """
    resolved, command = list(arguments), called(arguments)
    for number, argument in enumerate(arguments):
        if argument == "--config" and number + 1 < len(arguments):
            resolved[number + 1] = find_recipe(arguments[number + 1], command)
        elif argument.startswith("--config="):
            resolved[number] = f"--config={find_recipe(argument.removeprefix('--config='), command)}"
    return resolved


def explain(message: str, arguments: list[str]) -> str:
    """A parser's complaint as one line that says what, where, and what would be accepted."""
    name, config = called(arguments), config_of(arguments)
    types = {field.name: field.type for field in fields(config)} if config else {}
    flags = list(types)
    where = f"{name}: " if name else ""
    if match := re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        flag = match[1].split("=")[0]
        return f"{where}unknown flag {flag}{did_you_mean(flag.lstrip('-'), flags, '--')}"
    if match := re.search(r"does not accept option '([^']+)'", message):
        return f"{where}unknown key {match[1]!r} in the configuration{did_you_mean(match[1], flags)}"
    group = next((f"{argument} " for argument in arguments[:1] if argument in GROUPS), "")
    commands = [command.removeprefix(group) for command in COMMANDS if command.startswith(group)]
    if match := re.search(r"invalid choice: '([^']+)'", message):
        near = did_you_mean(match[1], commands, group)
        return f"unknown command {group}{match[1]!r}{near}; commands: {', '.join(commands)}"
    if re.search(r'expected "(\w+\.)?subcommand"', message):
        return f"name a command: {', '.join(commands)} (emae {group}COMMAND --help)"
    if match := re.search(r"arguments are required: (.*)", message):
        required = [f"--{part.split('.')[-1]}" for part in match[1].split(", ")]
        return f"{where}{' and '.join(required)} must be given (emae {name} --help)"
    return f"{where}{explain_value(message, types)}"


def explain_value(message: str, types: Mapping[str, Any]) -> str:
    """A parser's complaint about a value as one line.

    Args:
        types: of the settings, by name.
    """
    if match := re.search(r'Parser key "([^"]+)":', message):
        key = match[1].split(".")[-1]
        value = re.search(r"(?:Given|Got) value: (.*)", message)
        if key in types and value:
            return f"{key}={value[1]}: must be {shown(types[key])}"
    return " ".join(message.split())


def _fail(message: str, status: int) -> int:
    """One line on stderr, of one of the processes that have it to say."""
    line = printable(" ".join(message.split()))
    if may_say(line):
        print(f"emae: {line}", file=sys.stderr, flush=True)
    see_out(line)
    return status
