"""Every command as a function of the package: keywords for flags, a dataclass for JSON, exceptions for statuses."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.command import Result
from efficient_mae.commands import COMMANDS
from efficient_mae.errors import InputError
from tests.tasks.conftest import TINY, flags
from tests.tasks.labelled import QUICK, write_labelled

NAMES = {command: command.replace("-", "_").replace(" ", "_") for command in COMMANDS}
RUN = {**TINY, "epochs": 1, "batch_size": 16, "num_workers": 0, "device": "cpu"}
STUB = ast.parse((Path(emae.__file__).parent / "functions.pyi").read_text())


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command prints with `--json`."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("functions"))


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    return Path(emae.pretrain(data=data, out=data / "run", **RUN).run)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_and_the_stub_says_what_it_returns(command: str):
    name = NAMES[command]
    function, stub = getattr(emae, name), next(one for one in STUB.body if getattr(one, "name", "") == name)
    assert isinstance(stub, ast.FunctionDef) and stub.returns
    returned = inspect.signature(COMMANDS[command].run).return_annotation
    kinds = get_args(returned) or (returned,)
    assert {kind.__name__ for kind in kinds} == set(ast.unparse(stub.returns).split(" | "))
    assert all(issubclass(kind, Result) for kind in kinds)
    for documented in (function.__doc__, ast.get_docstring(stub)):
        assert documented.startswith(f"`emae {command}`: {COMMANDS[command].help}.")
    assert name in emae.__all__ and name in dir(emae) and getattr(emae, name) is function


def test_torch_is_not_loaded_to_name_them():
    code = "import sys, efficient_mae as emae; print(emae.pretrain, emae.report); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_part_of_the_same_name_does_not_hide_a_function():
    import efficient_mae.demo
    import efficient_mae.report.command
    import efficient_mae.study.command

    assert all(inspect.isfunction(function) for function in (emae.demo, emae.report, emae.study))
    for place in (emae, efficient_mae.functions):
        with pytest.raises(AttributeError, match="attribute '?pretrane"):
            _ = place.pretrane


def test_a_run_and_the_same_again(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "encoder.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    again = emae.pretrain(data=data, out=run, **RUN)
    assert "is finished" in capsys.readouterr().err
    assert (again.run, again.encoder) == (str(run), str(run / "encoder.safetensors"))
    assert Path(again.encoder).stat().st_mtime_ns == before
    assert printed(capsys, "pretrain", *flags(data=data, out=run, **RUN)) == again.plain()
    assert main(["pretrain", *flags(data=data, out=tmp_path / "run", **RUN)]) == 0
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


CPU = {"device": "cpu"}
JUDGED = {**QUICK, **CPU, "epochs": 1, "weights": "run", "data": ".", "crop_scale": [0.5, 1.0]}
CALLS: dict[str, dict[str, Any]] = {
    "knn": {**CPU, "weights": "run", "k": 3, "num_workers": 0},
    "linear-probe": {**JUDGED, "out": "probed"},
    "finetune": {**JUDGED, "out": "tuned", "seeds": 2},
    "reconstruct": {**CPU, "weights": "run", "image": "val/blob/000.png", "masks": 1},
    "report": {"run": "run"},
    "info": {**CPU, "model": "mae_vit_tiny_patch16", "img_size": [32, 64]},
    "bench flops": {"model": "mae_vit_tiny_patch16", "masks": 2},
    "study": {**CPU, "name": "table1", "preset": "smoke", "out": "studies"},
}


@pytest.mark.parametrize("command", CALLS)
def test_its_fields_are_what_the_command_prints(
    command: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run.parent)
    found = getattr(emae, NAMES[command])(**CALLS[command])
    shown = printed(capsys, *command.split(), *flags(**CALLS[command]))
    assert found.plain() == shown
    assert list(shown) == [one.name for one in fields(found) if one.name in shown]
    for name, value in shown.items():
        assert isinstance(value, dict | list) or getattr(found, name) == value
    with pytest.raises(AttributeError):
        found.run = "another"


def test_results_are_dataclasses_to_the_last(run: Path, data: Path):
    accuracy = emae.knn(weights=run, data=data, k=3, num_workers=0, device="cpu").accuracy
    assert 0 <= accuracy.untrained <= 1
    out = data / "seeds"
    tuned = emae.finetune(**JUDGED | {"weights": run, "data": data, "out": out, "seeds": 2})
    results = [json.loads((out / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    assert tuned.top1.values == [result["top1"] for result in results]


def test_a_recipe_and_a_file_of_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "model.yaml"
    file.write_text("model: mae_vit_tiny_patch16\nimg_size: [32, 64]\ngamma: 1\n")
    found = emae.info(config=file, gamma=0.5, device="cpu")
    assert (found.model["img_size"], found.model["gamma"]) == ([32, 64], 0.5)
    assert found.plain() == printed(capsys, "info", "--config", str(file), "--gamma", "0.5", "--device", "cpu")
    with pytest.raises(InputError, match="out must be given"):
        emae.pretrain(config="demo")


def test_what_is_found_wrong_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    found = emae.doctor(model="mae_vit_tiny_patch4", img_size=16, depth=1, decoder_depth=1, out="file", device="cpu")
    assert found.problems and found.status == 2
    assert next(check for check in found.checks if check.name == "out").status == "problem"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: emae.knn(weigths="x"), "knn: unknown setting 'weigths'; did you mean weights?"),
        (lambda: emae.pretrain(data="x", out="y", lr=0.1), "pretrain: unknown setting 'lr'; did you mean base_lr?"),
        (lambda: emae.bench_step(roundz=3), "bench step: unknown setting 'roundz'; did you mean rounds?"),
        (lambda: emae.pretrain(), "pretrain: data and out must be given (emae pretrain --help)"),
        (lambda: emae.pretrain(data="x", out="y", epochs="few"), "pretrain: epochs=few: must be int | float"),
        (lambda: emae.pretrain(data="x", out="y", epochs=-0.5), "epochs=-0.5: must be greater than 0"),
        (lambda: emae.pretrain(data="x", out="y", batch_size=2.5), "pretrain: batch_size=2.5: must be int | null"),
        (lambda: emae.pretrain(data="x", out="y", beta="big"), "pretrain: beta=big: must be float | null"),
        (lambda: emae.pretrain(data="x", out="y", epochs=0), "epochs=0: must be greater than 0"),
        (lambda: emae.pretrain(data="x", out="y", img_size=[16, 0]), "img_size[1]=0: must be at least 1"),
        (lambda: emae.pretrain(data=3, out="y"), "pretrain: data=3: must be str"),
        (lambda: emae.finetune(data="x", out="y", hflip="perhaps"), "finetune: hflip=perhaps: must be bool"),
        (
            lambda: emae.pretrain(config="dmo"),
            "config='dmo': no such file, and no recipe of that name; did you mean demo?",
        ),
        (lambda: emae.info(model="mae_vit_bse_patch16"), "did you mean mae_vit_base_patch16?"),
        (lambda: emae.knn(weights="/nowhere"), "/nowhere: no such file or directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    call: Callable[[], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refusal:
        call()
    assert isinstance(refusal.value, InputError) and said in str(refusal.value)
    assert "\n" not in str(refusal.value) and not any(tmp_path.iterdir())
