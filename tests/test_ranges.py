"""Numbers out of range: every number of every command has its bounds, and what is outside is refused."""

import dataclasses
import json
import math
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.commands import COMMANDS
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.beit import BEiTConfig
from efficient_mae.methods.cae import CAEConfig
from efficient_mae.methods.mae import MAEConfig
from efficient_mae.ranges import NonNegativeInt, Pixels, Positive, PositiveInt, Seed, Share, Switch, check_range
from efficient_mae.recipes import recipe_settings, recipes
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.registry import TASKS

CONFIGS = {name: command.config for name, command in COMMANDS.items()}
RECIPES = (
    ("linear_probe", "linear-probe"),
    ("finetune", "finetune"),
    ("segment", "segment"),
    ("detect", "detect"),
    ("", "pretrain"),
)
# Settings that no command takes as they are.
FURTHER = {kind.__name__: kind for kind in (MAEConfig, BEiTConfig, CAEConfig, PretrainConfig, ImageStatistics)}


def number_fields(config: type) -> list[str]:
    """By the fields' plain types, whatever is declared beside."""
    return [field.name for field in dataclasses.fields(config) if re.search(r"\b(int|float)\b", str(field.type))]


def leaves(declared: Any) -> Iterator[tuple[Any, Any]]:
    """Each number in a type, with how a value of it is put among the others."""
    if get_origin(declared) in (Union, types.UnionType):
        for choice in get_args(declared):
            yield from leaves(choice)
    elif get_origin(declared) is tuple:
        kinds = [kind for kind in get_args(declared) if kind is not ...]
        if ... in get_args(declared):
            kinds *= 2
        for place, kind in enumerate(kinds):
            for leaf, put in leaves(kind):
                around = [next(inside(other)) for other in kinds]
                yield leaf, lambda value, p=place, a=around, f=put: (*a[:p], f(value), *a[p + 1 :])
    elif declared is not type(None) and get_origin(declared) is not Literal:
        yield declared, lambda value: value


def inside(leaf: Any) -> Iterator[float]:
    """Numbers that its bounds admit, those exactly on a closed bound among them."""
    kind, *bounds = get_args(leaf)
    closed = [next(iter(dataclasses.asdict(bound).values())) for bound in bounds if isinstance(bound, Ge | Le)]
    yield from (kind(value) for value in (*closed, 0.5 if kind is float else max(1, *closed, 1)))


def outside(leaf: Any) -> Iterator[float]:
    """The nearest numbers that its bounds do not admit; of floats also what is no finite number."""
    kind, *bounds = get_args(leaf)
    for bound in bounds:
        limit = kind(next(iter(dataclasses.asdict(bound).values())))
        away = -1 if isinstance(bound, Ge | Gt) else 1
        if isinstance(bound, Gt | Lt):
            yield limit
        else:
            yield limit + away if kind is int else math.nextafter(limit, away * math.inf)
    if kind is float:
        yield from (math.nan, math.inf, -math.inf)


def required(config: type) -> dict[str, Any]:
    """What must be given; of settings that no command takes, numbers that would do."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING:
            values[field.name] = True if field.type is bool else "x"
            if field.name in number_fields(config):
                leaf, put = next(leaves(config.ranges[field.name]))
                values[field.name] = put(next(inside(leaf)))
    return values


def refused_values(config: type) -> Iterator[tuple[str, float, Any]]:
    """Name, the number that is out of bounds, and the value that holds it."""
    for name in number_fields(config):
        for leaf, put in leaves(config.ranges[name]):
            yield from ((name, number, put(number)) for number in outside(leaf))


@pytest.mark.parametrize("config", (CONFIGS | FURTHER).values(), ids=CONFIGS | FURTHER)
def test_every_number_declares_its_range(config: type):
    numbers = {name: declared for name, declared in config.ranges.items() if declared != Switch}
    assert numbers.keys() == set(number_fields(config))
    for name, declared in numbers.items():
        for leaf, _ in leaves(declared):
            assert get_origin(leaf) is Annotated, f"{config.__name__}.{name}: a number whose range is not declared"
            kind, *bounds = get_args(leaf)
            assert kind in (int, float) and bounds and all(isinstance(bound, Ge | Gt | Le | Lt) for bound in bounds)
            assert kind is int or len(bounds) == 2, f"{config.__name__}.{name}: a float is bounded at both ends"


@pytest.mark.parametrize("config", (CONFIGS | FURTHER).values(), ids=CONFIGS | FURTHER)
def test_python_refuses_what_is_outside_and_takes_what_is_on_the_bounds(config: type):
    given = required(config)
    config(**given)
    for name, number, value in refused_values(config):
        with pytest.raises(ValueError, match=rf"^{name}(\[\d\])?={re.escape(str(number))}: must be [^\n]+$"):
            config(**{**given, name: value})
    for name in number_fields(config):
        for leaf, put in leaves(config.ranges[name]):
            for number in inside(leaf):
                config(**{**given, name: put(number)})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_refuses_what_is_outside(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    given = [part for name, value in required(CONFIGS[command]).items() for part in (f"--{name}", value)]
    for name, number, value in refused_values(CONFIGS[command]):
        typed = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
        status = main([*command.split(), *given, f"--{name}={typed}"])
        out, err = capsys.readouterr()
        assert status == 2 and out == "" and len(err.splitlines()) == 1, (name, number)
        assert re.match(rf"emae: {name}(\[\d\])?={re.escape(str(number))}: must be ", err), (name, number, err)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--base_lr=-1", "base_lr=-1.0: must be greater than 0"),
        ("--base_lr=0", "base_lr=0.0: must be greater than 0"),
        ("--weight_decay=-1", "weight_decay=-1.0: must be at least 0"),
        ("--clip_grad=-1", "clip_grad=-1.0: must be greater than 0, or null"),
        ("--clip_grad=.inf", "clip_grad=inf: must be finite, or null"),
        ("--num_workers=-1", "num_workers=-1: must be at least 0, or null"),
        ("--seed=-1", "seed=-1: must be at least 0 and at most 9223372036854775807"),
        ("--std=[0,0,0]", "std[0]=0.0: must be greater than 0, or null"),
        ("--mean=[0.5,.nan,0.5]", "mean[1]=nan: must be finite, or null"),
        ("--crop_scale=[0,1]", "crop_scale[0]=0.0: must be greater than 0 and at most 1"),
        ("--img_size=[16,0]", "img_size[1]=0: must be at least 1"),
    ],
)
def test_the_line_that_the_user_reads(
    flag: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--data", "fashion-mnist-sample", "--out", "run", flag]) == 2
    assert capsys.readouterr().err == f"emae: {said}\n"
    name, _, value = flag.removeprefix("--").partition("=")
    Path("recipe.yaml").write_text(f"data: fashion-mnist-sample\nout: run\n{name}: {value}\n")
    assert main(["pretrain", "--config", "recipe.yaml"]) == 2
    assert capsys.readouterr().err == f"emae: {said}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_several_seeds_must_all_be_in_range_before_the_first_is_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    settings = ["--from", "scratch", "--model", "mae_vit_tiny_patch4", "--img_size", "16", "--seeds", "2"]
    arguments = ["--data", "fashion-mnist-sample", "--out", str(tmp_path / "run"), "--seed", str(2**63 - 1)]
    assert main(["finetune", *arguments, *settings]) == 2
    assert f"seed={2**63}: must be" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_ranges_and_plain_types(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Annotated" not in text
    for name in number_fields(CONFIGS[command]):
        about = re.split(rf" --{name} (?:\[ITEM,\.\.\.\]|{name.upper()}) ", text)[-1]
        words = "" if name in ("mean", "value_range") else "(at least|at most|greater than|less than) [0-9]"
        assert re.match(rf"(?:(?! --).)*{words}(?:(?! --).)*\(type: ", about), name


def test_numbers_of_other_kinds():
    for declared, value, said in (
        (PositiveInt, 2.5, "n=2.5: must be int"),
        (PositiveInt, True, "n=True: must be int"),
        (Positive, "1", "n='1': must be float"),
        (Positive | None, "few", "n='few': must be float | null"),
        (tuple[Share, Share], (0.5,), "n=(0.5,): must be tuple[float, float]"),
        (Pixels, 16.0, "n=16.0: must be int | tuple[int, int]"),
        (tuple[NonNegativeInt, ...], (1, 2, None), "n[2]=None: must be int"),
    ):
        with pytest.raises(ValueError) as refusal:
            check_range("n", value, declared)
        assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Positive, 1),
        (Positive, np.float32(0.5)),
        (PositiveInt, np.int64(3)),
        (Positive | None, None),
        (Pixels, [16, 32]),
        (Seed, 2**63 - 1),
        (tuple[NonNegativeInt, ...], ()),
    ],
)
def test_numbers_that_will_do(declared: Any, value: Any):
    check_range("n", value, declared)


def test_the_largest_seed_seeds():
    torch.Generator().manual_seed(PretrainConfig(data="x", out="y", seed=2**63 - 1).seed)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda mask: emae.random_masking(-1, (4, 4), 0.5), "batch_size=-1"),
        (lambda mask: emae.random_masking(1, (0, 4), 0.5), r"grid_size\[0\]=0"),
        (lambda mask: emae.random_masking(1, (4, 4), math.nan), "mask_ratio=nan"),
        (lambda mask: emae.p2dist(mask, k=0), "k=0"),
        (lambda mask: emae.p2dist(mask, patch_size=0), "patch_size=0"),
        (lambda mask: emae.p2dist_exact(mask, patch_size=-1), "patch_size=-1"),
        (lambda mask: emae.difficulty(mask, patch_size=-1, metric="inverse_distance_sum"), "patch_size=-1"),
        (lambda mask: emae.flatten_weights(mask.float(), gamma=math.inf), "gamma=inf: must be finite"),
        (lambda mask: emae.select_targets(mask.float(), beta=math.nan), "beta=nan"),
        (lambda mask: emae.select_targets(mask.float(), patch_size=0), "patch_size=0"),
        (
            lambda mask: emae.difficulty_flatten_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1), gamma=-1.0),
            "gamma=-1.0",
        ),
    ],
)
def test_functions_refuse_what_settings_would(call: Any, said: str):
    mask = torch.tensor([[[True, False], [True, False]]])
    with pytest.raises(ValueError, match=said):
        call(mask)


@pytest.mark.parametrize("name", recipes())
def test_what_a_recipe_sets_is_in_range(name: str):
    settings = recipe_settings(name)
    command = next(command for word, command in RECIPES if word in name)
    TASKS[command].config_of(settings.get("model"))(**{"data": "x", "out": "y", **settings})


def test_every_path_is_a_location():
    """`--out=~/a` reaches us as it is: of a setting that isn't declared as one, a folder called `~` would be made."""
    paths = {"data", "val_data", "out", "weights", "run", "image", "tokenizer"}
    configs = [command.config for command in COMMANDS.values()]
    for config in (*configs, TASKS["pretrain"].config_of("beit_vit_base_patch16")):
        named = {one.name for one in dataclasses.fields(config) if "str" in str(one.type)} & paths
        assert named == config.locations & named, config.__name__
