"""The command `emae`: one parser; a subcommand is a config dataclass, a function, and how its result is shown."""

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from efficient_mae import __version__
from efficient_mae.bench.data import BenchDataConfig, bench_data, show_bench_data
from efficient_mae.bench.doctor import DoctorConfig, doctor, show_doctor
from efficient_mae.bench.flops_tables import BenchFlopsConfig, bench_flops, show_bench_flops
from efficient_mae.bench.info import InfoConfig, info, show_info
from efficient_mae.bench.step import BenchStepConfig, bench_step, show_bench_step
from efficient_mae.data import WorkerFailure
from efficient_mae.data.names import printable
from efficient_mae.demo import DemoConfig, demo, show_demo, show_run
from efficient_mae.engine.distributed import LostProcessError
from efficient_mae.engine.logging import PlainConsole
from efficient_mae.engine.plain_files import parse_yaml
from efficient_mae.engine.preemption import Stopped
from efficient_mae.errors import DivergedError, InputError, did_you_mean
from efficient_mae.report.command import ReportConfig, report, show_report
from efficient_mae.report.report import write_report
from efficient_mae.study.command import StudyConfig, show_study, study
from efficient_mae.tasks.classifier import show_classifier
from efficient_mae.tasks.export import ExportConfig, export, show_export
from efficient_mae.tasks.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.knn import KnnConfig, knn, show_knn
from efficient_mae.tasks.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.reconstruct import ReconstructConfig, reconstruct, show_reconstruct
from efficient_mae.tasks.replay import ReplayConfig, replay, show_replay


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        config: dataclass of its settings; each is a flag.
        run: does it, and returns what `--json` prints.
        show: prints that for a person.
        help: one line.
    """

    config: type
    run: Callable[[Any], dict[str, Any]]
    show: Callable[[dict[str, Any], Console], None]
    help: str


def pretrain_and_report(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train, then write the report."""
    run = pretrain(config)
    if int(os.environ.get("RANK", "0")) == 0:
        write_report(run)
    return {"run": str(run), "encoder": str(run / "encoder.safetensors"), "report": str(run / "report.html")}


COMMANDS = {
    "demo": Command(DemoConfig, demo, show_demo, "learn on bundled images in a few minutes, and see what came of it"),
    "pretrain": Command(
        PretrainConfig,
        pretrain_and_report,
        lambda result, console: show_run(Path(result["run"]), console),
        "pre-train an encoder on images; the same command again resumes",
    ),
    "reconstruct": Command(
        ReconstructConfig, reconstruct, show_reconstruct, "picture what a model makes of an image"
    ),
    "knn": Command(KnnConfig, knn, show_knn, "k-NN accuracy of an encoder, an untrained one, and raw pixels"),
    "linear-probe": Command(
        LinearProbeConfig, linear_probe, show_classifier, "train a linear head on a frozen encoder, and judge it"
    ),
    "finetune": Command(
        FinetuneConfig, finetune, show_classifier, "train an encoder and a head with labels, and judge them"
    ),
    "replay": Command(
        ReplayConfig, replay, show_replay, "do a skipped step of a run again, and show what went wrong"
    ),
    "export": Command(ExportConfig, export, show_export, "write a model for timm, transformers, ONNX, torch.export"),
    "bench step": Command(
        BenchStepConfig, bench_step, show_bench_step, "time training steps of MAE, Efficient MAE and other libraries"
    ),
    "bench data": Command(BenchDataConfig, bench_data, show_bench_data, "time the loader alone, beside the step"),
    "bench flops": Command(
        BenchFlopsConfig, bench_flops, show_bench_flops, "count the paper's GFLOPs (Tables 1, 3 and 4)"
    ),
    "study": Command(
        StudyConfig, study, show_study, "run a table or figure of the paper, beside the paper's figures"
    ),
    "report": Command(ReportConfig, report, show_report, "write the report of a run"),
    "doctor": Command(DoctorConfig, doctor, show_doctor, "whether training can run here, and what it would wait for"),
    "info": Command(InfoConfig, info, show_info, "parameters, tokens and GMACs of a model, and the environment"),
}


# What a disk says that cannot be written to, by the system's numbers.
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the system allows here",
    errno.EROFS: "the disk has become one that can only be read",
    errno.EIO: "the disk fails",
}

# Commands of two words, by their first.
GROUPS = {"bench": "measure and count what training costs"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emae`; return its exit status: 0 done, 2 for an input that the user can mend, 1 otherwise."""
    given = list(sys.argv[1:] if arguments is None else arguments)
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
    except Exception:
        traceback.print_exc()
        return 1


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    try:
        parsed = parser.parse_args(_with_recipe_paths(_with_scratch(_with_study_name(arguments))))
    except ArgumentError as error:
        raise InputError(explain(str(error), arguments)) from None
    name, own = parsed.subcommand, parsed[parsed.subcommand]
    if name in GROUPS:
        name, own = f"{name} {own.subcommand}", own[own.subcommand]
    command, values = COMMANDS[name], vars(own)
    config = command.config(**{field.name: values[field.name] for field in fields(command.config)})
    result = command.run(config)
    if int(os.environ.get("RANK", "0")) > 0:
        return 0
    if values["json"]:
        print(json.dumps(result))
    else:
        command.show(result, PlainConsole(soft_wrap=True))
    # What the doctor finds is for the user to mend.
    return 2 if result.get("problems") else 1 if result.get("failed") else 0


def build_parser() -> ArgumentParser:
    """The parser of all subcommands."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="emae", version=__version__, exit_on_error=False, description=_DESCRIPTION)
    subcommands = parser.add_subcommands(required=True)
    groups = {}
    for group, description in GROUPS.items():
        middle = ArgumentParser(exit_on_error=False, description=description)
        subcommands.add_subcommand(group, middle, help=description)
        groups[group] = middle.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        own = ArgumentParser(exit_on_error=False, description=command.help)
        own.add_argument(
            "--config", action="config", help=f"recipe ({', '.join(recipes())}) or YAML file; flags override"
        )
        own.add_class_arguments(command.config, as_group=False)
        own.add_argument("--json", action="store_true", help="print the result as one JSON document")
        group, _, short = name.rpartition(" ")
        (groups[group] if group else subcommands).add_subcommand(short, own, help=command.help)
    return parser


_DESCRIPTION = "Pre-train Vision Transformers as masked autoencoders, at mask ratio 0.85 and above."


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(files("efficient_mae.recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


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


def _with_study_name(arguments: list[str]) -> list[str]:
    """The arguments with `study NAME` and `study --list` turned into the flags they stand for."""
    if arguments[:1] != ["study"]:
        return arguments
    given = ["true" if before == "--list" else "" for before in arguments]
    spelt = [part for argument, value in zip(arguments, given, strict=True) for part in (argument, value) if part]
    named = len(spelt) > 1 and not spelt[1].startswith("-")
    return ["study", "--name", *spelt[1:]] if named else spelt


def _split_from(argument: str) -> list[str]:
    return ["--from", argument.removeprefix("--from=")] if argument.startswith("--from=") else [argument]


def _with_recipe_paths(arguments: list[str]) -> list[str]:
    """The arguments with `--config NAME` turned into the recipe's path.

    Raises:
        InputError: neither a file nor a recipe.
    """
    resolved = list(arguments)
    for number, argument in enumerate(arguments):
        if argument == "--config" and number + 1 < len(arguments):
            resolved[number + 1] = _recipe_path(arguments[number + 1])
        elif argument.startswith("--config="):
            resolved[number] = f"--config={_recipe_path(argument.removeprefix('--config='))}"
    return resolved


def _recipe_path(name: str) -> str:
    if Path(name).is_file():
        parse_yaml(Path(name).read_bytes(), f"config={name}")  # jsonargparse would choke on some
        return name
    if name in recipes():
        return str(recipes()[name])
    raise InputError(f"config={name!r}: no such file, and no recipe of that name{did_you_mean(name, recipes())}")


def explain(message: str, arguments: list[str]) -> str:
    """A parser's complaint as one line that says what, where, and what would be accepted."""
    name = next((name for name in (arguments[0:1], arguments[0:2]) if " ".join(name) in COMMANDS), [])
    name = " ".join(name)
    flags = [field.name for field in fields(COMMANDS[name].config)] if name else []
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
    if match := re.search(r'Parser key "([^"]+)":', message):
        key = match[1].split(".")[-1]
        types = {field.name: field.type for field in fields(COMMANDS[name].config)} if name else {}
        value = re.search(r"(?:Given|Got) value: (.*)", message)
        if key in types and value:
            expected = getattr(types[key], "__name__", types[key]) if isinstance(types[key], type) else types[key]
            return f"{where}{key}={value[1]}: must be {str(expected).replace('None', 'null')}"
    return f"{where}{' '.join(message.split())}"


def _fail(message: str, status: int) -> int:
    """One line on stderr, of one process of a machine; what the others meet alone, torchrun says in its summary."""
    line = printable(" ".join(message.split()))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"emae: {line}", file=sys.stderr)
    elif "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(RuntimeError(line))
    return status
