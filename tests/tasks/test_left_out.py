"""Images that can't be read are not missing from an accuracy without a word: in every judgement of an encoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import efficient_mae as emae
from efficient_mae.data import open_labelled
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.study.labels import write_few_labels
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

from .conftest import TINY
from .labelled import QUICK, SMALL_ENCODER, write_labelled


def by_finetuning(data: Path, folder: Path) -> Any:
    return finetune(FinetuneConfig(data=str(data), out=str(folder / "run"), epochs=1, **SMALL_ENCODER, **QUICK))


def by_probe(data: Path, folder: Path) -> Any:
    settings = {**SMALL_ENCODER, **QUICK, "epochs": 1}
    return linear_probe(LinearProbeConfig(data=str(data), out=str(folder / "run"), **settings))


def by_knn(data: Path, folder: Path) -> Any:
    model = emae.create_model("mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1, decoder_depth=1)
    save_encoder(folder / "tiny.safetensors", model, ImageStatistics((0.5,), (0.5,)))
    return knn(KnnConfig(weights=str(folder / "tiny.safetensors"), data=str(data), k=5, num_workers=0, device="cpu"))


def by_monitor(data: Path, folder: Path) -> Any:
    settings = {**TINY, "num_workers": 0, "batch_size": 40, "epochs": 2, "knn_every": 1}
    return pretrain(PretrainConfig(data=str(data), out=str(folder / "run"), **settings))


def by_study(data: Path, folder: Path) -> None:
    write_few_labels(open_labelled(str(data)), 12, folder / "few")


JUDGEMENTS = [by_finetuning, by_probe, by_knn, by_monitor, by_study]
Judge = Callable[[Path, Path], Any]


def spoil(data: Path, *names: str) -> list[str]:
    paths = [data / name for name in names]
    for path in paths:
        path.write_bytes(b"x")
    return [str(path) for path in paths]


@pytest.mark.parametrize("judge", JUDGEMENTS)
def test_one_held_out_image_is_named_once(judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_labelled(tmp_path / "data")
    (name,) = spoil(data, "val/blob/003.png")
    result = judge(data, tmp_path)
    assert capsys.readouterr().err.count(f"left out {name}: not an image that can be read") == 1
    if judge in (by_finetuning, by_probe, by_knn):
        assert result.test_images == 35 and result.damaged == {name: "not an image that can be read"}
    if judge in (by_finetuning, by_probe):
        assert json.loads((tmp_path / "run" / "results.json").read_text())["damaged"] == result.damaged


@pytest.mark.parametrize("judge", JUDGEMENTS)
def test_more_than_one_in_a_hundred_are_refused(judge: Judge, tmp_path: Path):
    data = write_labelled(tmp_path / "data", test=4)
    names = spoil(data, "val/blob/001.png", "val/blob/003.png", "val/void/000.png")
    with pytest.raises(ValueError) as caught:
        judge(data, tmp_path)
    message = str(caught.value)
    assert f"of 12 images cannot be read, more than 1%; the first is {names[0]}: not an image" in message
    assert "mend or remove them" in message and "\n" not in message
    assert ("knn_every" in message) == (judge is by_monitor)
    assert not (tmp_path / "run" / "results.json").exists()
    for name in names:  # the advice is true
        Path(name).unlink()
    judge(data, tmp_path)


def test_training_images_of_knn_are_counted_too(tmp_path: Path):
    data = write_labelled(tmp_path / "data")
    names = spoil(data, "train/void/000.png", "val/blob/003.png")
    result = by_knn(data, tmp_path)
    assert list(result.damaged) == names
    assert (result.train_images, result.test_images) == (119, 35)
    spoil(data, "train/blob/000.png")
    with pytest.raises(ValueError, match="2 of 120 images cannot be read, more than 1%"):
        by_knn(data, tmp_path)


def test_pictures_are_of_training_images_where_no_held_out_one_can_be_read(tmp_path: Path):
    data = write_labelled(tmp_path / "data", train=40, test=4)
    for file in (data / "val").rglob("*.*"):
        file.write_bytes(b"x")
    pretrain(PretrainConfig(data=str(data), out=str(tmp_path / "run"), **TINY | {"num_workers": 0, "epochs": 1}))
    assert [file.name for file in (tmp_path / "run" / "figures").iterdir()] == ["panel-epoch-0001.png"]


def test_no_picture_where_none_of_the_images_looked_at_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    data = write_labelled(tmp_path / "data")
    monkeypatch.setattr("efficient_mae.tasks.pretrain.readable_images", lambda *_: [])
    settings = {**TINY, "num_workers": 0, "batch_size": 40, "epochs": 1, "warmup_epochs": 0}
    pretrain(PretrainConfig(data=str(data), out=str(tmp_path / "run"), **settings))
    assert "epoch 1: no picture, for none of the images looked at can be read" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("figures/*"))
