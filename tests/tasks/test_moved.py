"""A run whose data moves, is spelt otherwise or changes; and paths wherever they are read from."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from efficient_mae.cli import main
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.pretrain import pretrain

from .conftest import assert_same_result, write_images
from .labelled import write_labelled
from .test_pretrain import config, stop_at_checkpoint

SETTINGS = {"epochs": 4, "checkpoint_every": 3}


def cut(monkeypatch: pytest.MonkeyPatch, data: Path | str, out: Path, **settings) -> None:
    """A run that breaks off while its second checkpoint is written."""
    with monkeypatch.context() as patch:
        stop_at_checkpoint(patch, 2)
        with pytest.raises(InterruptedError):
            pretrain(config(Path(data), out, **SETTINGS, **settings))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 20 images that stay where they are."""
    folder = tmp_path_factory.mktemp("alone")
    return pretrain(config(write_images(folder / "data", 20), folder / "run", **SETTINGS))


@pytest.mark.parametrize("how", ["slash", "relative", "absolute", "moved", "linked"])
def test_data_that_lies_elsewhere_is_the_same(how: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "d" / "flat", 20)
    monkeypatch.chdir(tmp_path)
    cut(monkeypatch, "d/flat", tmp_path / "cut")
    elsewhere = {"slash": "d/flat/", "relative": "./d/../d/flat", "absolute": str(data)}.get(how, str(tmp_path / "e"))
    if how == "moved":
        shutil.move(data, elsewhere)
    elif how == "linked":
        (tmp_path / "e").symlink_to(data)
    settings = dataclasses.replace(config(data, tmp_path / "cut", **SETTINGS), data=elsewhere)
    assert_same_result(pretrain(settings), alone)


def test_other_images_of_the_same_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "data", 20)
    cut(monkeypatch, data, tmp_path / "run")
    other = shutil.copytree(data, tmp_path / "other")
    (other / "000.png").rename(other / "999.png")
    said = "another configuration: data .*/data' there, .*/other' here; other images .* by --accept_changed_data true"
    with pytest.raises(ValueError, match=said):
        pretrain(config(other, tmp_path / "run", **SETTINGS))
    (data / "000.png").rename(data / "999.png")
    with pytest.raises(ValueError, match="20 images now and had 20 when .* was begun, of other names: give it back"):
        pretrain(config(data, tmp_path / "run", **SETTINGS))


def test_removed_images_are_accepted_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "data", 20)
    cut(monkeypatch, data, tmp_path / "run")
    (data / "000.png").unlink()
    settings = config(data, tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match=r"19 images now and had 20 .* by --accept_changed_data true"):
        pretrain(settings)
    run = pretrain(dataclasses.replace(settings, accept_changed_data=True))
    record = json.loads((run / "data.json").read_text())
    assert (record["images"], record["before"]) == (19, [{"images": 20, "step": 3}])
    pretrain(settings)  # accepted once, it's the run's
    assert json.loads((run / "data.json").read_text()) == record


def test_a_run_without_a_record_goes_on(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "data", 20)
    cut(monkeypatch, data, tmp_path / "cut")
    (tmp_path / "cut" / "data.json").unlink()
    assert_same_result(pretrain(config(data, tmp_path / "cut", **SETTINGS)), alone)
    assert (tmp_path / "cut" / "data.json").is_file()


def test_a_record_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "data", 20)
    cut(monkeypatch, data, tmp_path / "run")
    for content in ("[]", '{"images": "x", "names": "", "before": []}', '{"images": 1, "names": "", "before": [3]}'):
        (tmp_path / "run" / "data.json").write_text(content)
        with pytest.raises(ValueError, match="data.json: doesn't say how many images"):
            pretrain(config(data, tmp_path / "run", **SETTINGS))


@pytest.mark.parametrize("mend", ["mended", "removed"])
def test_damaged_images_that_are_mended_are_forgotten(mend: str, tmp_path: Path, monkeypatch, capsys):
    data = write_images(tmp_path / "data", 200)
    broken = [next(data.glob(f"{number:03}.*")) for number in (1, 2, 4)]
    whole = [file.read_bytes() for file in broken]
    for file in broken:
        file.write_bytes(b"")
    settings = config(data, tmp_path / "run", log_every=1)
    with pytest.raises(ValueError, match="3 of 200 images cannot be read.*mend them.*or remove .* --accept"):
        pretrain(settings)
    for file, content in zip(broken[:2], whole):
        file.write_bytes(content) if mend == "mended" else file.unlink()
    capsys.readouterr()
    pretrain(dataclasses.replace(settings, accept_changed_data=mend == "removed"))
    assert "1 of" in (said := capsys.readouterr().err) and "2 of 200 images could not" not in said
    named = dict(json.loads((tmp_path / "run" / "damaged.json").read_text()))
    assert [Path(name).name for name in named] == [broken[2].name]


def test_weights_that_are_spelt_otherwise(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pretrain(config(images, Path("r/base"), epochs=1))
    data = write_labelled(tmp_path / "labelled", train=12, test=2)
    small = {"data": str(data), "device": "cpu", "batch_size": 4, "epochs": 1, "num_workers": 0, "precision": "fp32"}
    finetune(FinetuneConfig(**small, weights="r/base", out="ft", in_chans=1))
    finetune(FinetuneConfig(**small, weights="./r/base/", out=str(tmp_path / "ft"), in_chans=1))
    pretrain(config(images, Path("r/b"), epochs=1, weights="r/base"))
    pretrain(config(images, Path("./r/b"), epochs=1, weights=str(tmp_path / "r" / "base")))


def test_its_config_works_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_images(tmp_path / "here" / "photos", 20)
    monkeypatch.chdir(tmp_path / "here")
    pretrain(config(Path("photos"), Path("run"), epochs=1))
    settings = read_settings(Path("run")).settings
    assert (settings["data"], settings["out"]) == (str(tmp_path / "here" / "photos"), str(tmp_path / "here" / "run"))
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--config", "here/run/config.yaml", "--out", "again"]) == 0
    assert_same_result(Path("again"), Path("here/run"))
    assert yaml.safe_load(Path("again/config.yaml").read_text())["out"] == str(tmp_path / "again")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(write_images(tmp_path / "photos", 20))
    pretrain(config(Path("~/photos"), Path("~/runs/a"), epochs=1))
    assert main(["pretrain", "--config=~/runs/a/config.yaml", "--out=~/runs/b", "--data=~/photos"]) == 0
    assert main(["report", "--run=~/runs/b"]) == 0
    assert main(["info", "--weights=~/runs/b"]) == 0
    assert (tmp_path / "runs" / "b" / "report.html").is_file() and not Path("~").exists()
