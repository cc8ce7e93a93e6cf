"""The command as a user meets it: help, one-line errors, exit statuses, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from efficient_mae.cli import main
from efficient_mae.commands import COMMANDS
from tests.tasks.conftest import TINY, flags, write_images

EMAE = [sys.executable, "-m", "efficient_mae"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    for label in ("circle", "dot"):
        for split in ("train", "test"):
            write_images(folder / "data" / split / label, 12)
    settings = {**TINY, "num_workers": 0, "epochs": 1, "batch_size": 8}
    assert main(["pretrain", *flags(data=folder / "data", out=folder / "run", **settings)]) == 0
    return folder / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_with_its_default(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in COMMANDS[command].config.__dataclass_fields__:
        assert f"--{name} " in text
    assert "default: " in text and "--config" in text and "--json" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["pretrain", "--data", "x", "--out", "y", "--mask_ration", "0.9"],
            "--mask_ration; did you mean --mask_ratio?",
        ),
        (["pretrain", "--out", "y"], "pretrain: --data must be given"),
        (["pretrain", "--data", "x", "--out", "y", "--epochs", "few"], "epochs=few: must be int"),
        (["pretrain", "--data", "x", "--out", "y", "--beta", "big"], "beta=big: must be float | null"),
        (["pretrain", "--config", "dmo"], "config='dmo': no such file, and no recipe of that name; did"),
        (["pretrain", "--data", "/nowhere", "--out", "y"], "/nowhere"),
        (["pretrane"], "unknown command 'pretrane'; did you mean pretrain?"),
        ([], "name a command: demo, pretrain"),
        (["bench"], "name a command: step, data, flops (emae bench COMMAND --help)"),
        (["bench", "stp"], "unknown command bench 'stp'; did you mean bench step?"),
        (["bench", "step", "--roundz", "3"], "bench step: unknown flag --roundz; did you mean --rounds?"),
        (["info", "--model", "mae_vit_bse_patch16"], "did you mean mae_vit_base_patch16?"),
        (["knn", "--weights", "/nowhere"], "/nowhere: no such file or directory"),
        (["report", "--weights", "/nowhere"], "/nowhere"),
        (["reconstruct", "--weights", "/nowhere", "--image", "a.png"], "/nowhere: no such file or directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("emae: ") and said in err
    assert not any(tmp_path.iterdir())


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python whose torch is damaged."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_help_is_there_before_torch_is(without_torch: dict[str, str]):
    done = subprocess.run([*EMAE, "--help"], env=without_torch, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


def test_a_library_that_cannot_be_imported_is_one_line(without_torch: dict[str, str]):
    done = subprocess.run([*EMAE, "doctor"], env=without_torch, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "emae: a library cannot be imported (libcudart.so: cannot open shared object file): "
        "install it again; torch and torchvision must match\n"
    )


def test_unknown_keys_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: x\nout: y\ngama: 0.5\n")
    status, _, err = run(capsys, "pretrain", "--config", str(file))
    assert status == 2 and "unknown key 'gama' in the configuration; did you mean gamma?" in err


def test_flags_override_a_recipe_and_print_config_shows_it(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--config", "demo", "--out", "somewhere", "--gamma", "0.4", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["gamma"], settings["data"], settings["img_size"]) == (0.4, "fashion-mnist-sample", 28)


def test_info_as_json(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "info", "--model", "mae_vit_base_patch16", "--json")
    result = json.loads(out)
    assert status == 0
    # ViT-B/16: 86 M parameters (85.8 without a head, of which the fixed positions aren't learned).
    assert result["cost"]["encoder_parameters"] / 1e6 == pytest.approx(85.65, abs=0.05)
    assert result["cost"]["encoder_tokens"] == 30 and result["cost"]["masked_patches"] == 167
    assert result["cost"]["mae_gmacs"] == pytest.approx(9.78, rel=0.05)
    assert {"torch", "cores", "precision"} <= result["environment"].keys()


def test_info_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "info", "--weights", str(trained))
    assert status == 0 and "16 x 16, 1 channels, 16 patches of 4 px" in out


def test_pretrain_leaves_a_report_and_says_how_to_load(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert (trained / "report.html").stat().st_size > 10_000
    status, out, err = run(capsys, "pretrain", "--config", str(trained / "config.yaml"))
    assert status == 0 and "is finished" in err
    assert "vit.load_state_dict(load_file(" in out and "report.html" in out


def test_knn_of_a_run_on_its_own_data(trained: Path, capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "knn", "--weights", str(trained), "--k", "3", "--num_workers", "0", "--json")
    result = json.loads(out)
    assert status == 0 and (result["train_images"], result["test_images"]) == (24, 24)
    assert result["accuracy"].keys() == {"raw_pixels", "untrained", "trained"}


def test_reconstruct(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photo = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((90, 60)).convert("CMYK").save(photo)
    picture = tmp_path / "picture.png"
    arguments = ["reconstruct", *flags(weights=trained, image=photo, out=picture)]
    status, _, _ = run(capsys, *arguments)
    assert status == 0
    with Image.open(picture) as image:
        assert image.width > 300
    Image.new("RGB", (3, 30)).save(photo)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "3 x 30 pixels are less than a patch of 4 x 4" in err
    photo.write_text("no photo")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and len(err.splitlines()) == 1 and "photo.jpg" in err
    status, _, err = run(capsys, "reconstruct", *flags(weights=trained, image=photo, out=tmp_path / "no" / "p.png"))
    assert status == 2 and "make it first" in err
    encoder = trained / "encoder.safetensors"
    status, _, err = run(capsys, "reconstruct", *flags(weights=encoder, image=photo, out=picture))
    assert status == 2 and "a decoder is needed" in err


def test_a_process_that_fails_alone_tells_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run(capsys, "info", "--weights", "/nowhere") == (2, "", "")
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert "/nowhere: no such file or directory" in told
