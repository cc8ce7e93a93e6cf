"""`emae pretrain --weights`: where a run starts, and that it goes on from there as any other does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import open_source
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.run_directory import RunRecord, read_settings
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig, resolve

from .conftest import TINY, assert_same_result, flags
from .labelled import QUICK, write_labelled
from .test_pretrain import config, stop_at_checkpoint


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    return pretrain(config(images, out, epochs=4, base_lr=0.01, mean=(0.25,), std=(0.125,)))


def weights_at_first(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Is filled with the model's weights, and what the optimiser keeps, when a run's first step is to be done."""
    seen: dict = {}
    begin = Run.batches

    def noting(self: Run, first_step: int):
        if not seen:
            seen.update({name: value.clone() for name, value in self.model.state_dict().items()})
            seen["steps"] = [int(state["step"]) for state in self._optimizer.state.values()]
        return begin(self, first_step)

    monkeypatch.setattr(Run, "batches", noting)
    return seen


def test_it_starts_from_a_run(run: Path, images: Path, tmp_path: Path, monkeypatch, capsys):
    seen = weights_at_first(monkeypatch)
    out = pretrain(config(images, tmp_path / "b", weights=str(run)))
    theirs = load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")
    assert all(torch.equal(seen[name], value) for name, value in theirs.items()) and seen["steps"] == []
    total = sum(value.numel() for value in theirs.values())
    said = " ".join(capsys.readouterr().err.split())
    assert f"starting from {run}: {total:,} parameters taken, 0 adapted, 0 new, at random" in said
    settings = read_settings(out).settings
    assert (settings["mean"], settings["std"], settings["weights"]) == ([0.25], [0.125], str(run))


def test_with_the_optimizers_state(run: Path, images: Path, tmp_path: Path, monkeypatch):
    seen = weights_at_first(monkeypatch)
    pretrain(config(images, tmp_path / "b", weights=str(run), resume_optimizer=True, epochs=1))
    parameters = sum(1 for _ in emae.load(run).parameters())
    assert seen["steps"] == [20] * parameters


def test_the_optimizers_state_of_a_deeper_model_in_part(run: Path, images: Path, tmp_path: Path, monkeypatch):
    deep = pretrain(config(images, tmp_path / "deep", epochs=1, depth=2))
    seen = weights_at_first(monkeypatch)
    pretrain(config(images, tmp_path / "b", weights=str(deep), resume_optimizer=True, epochs=1))
    assert seen["steps"] == [5] * sum(1 for _ in emae.load(run).parameters())


def test_the_optimizers_state_of_no_pretraining(run: Path, images: Path, tmp_path: Path):
    """Of an encoder alone, of a classifier's run and its checkpoint, of somebody else's folder."""
    data = write_labelled(tmp_path / "data")
    settings = {"data": str(data), "in_chans": 1, "device": "cpu", "epochs": 1, **QUICK}
    tuned = finetune(FinetuneConfig(**settings, weights=str(run), out=str(tmp_path / "tuned"))).run
    emae.export(weights=run, out=tmp_path / "export")
    for weights in (run / "encoder.safetensors", tuned, *Path(tuned).glob("checkpoints/*"), tmp_path / "export"):
        with pytest.raises(ValueError, match="resume_optimizer: .* holds no optimiser's state of pre-training; give"):
            pretrain(config(images, tmp_path / "c", weights=str(weights), resume_optimizer=True))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_killed_and_resumed_it_is_the_same(run: Path, images: Path, tmp_path: Path, monkeypatch, lost: bool):
    """Also where the weights that it began with are gone by then."""
    base = shutil.copytree(run, tmp_path / "base")
    settings = {"weights": str(base), "resume_optimizer": True, "checkpoint_every": 3, "epochs": 2}
    alone = pretrain(config(images, tmp_path / "alone", **settings))
    stop_at_checkpoint(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        pretrain(config(images, tmp_path / "cut", **settings))
    monkeypatch.undo()
    if lost:
        shutil.rmtree(base)
    assert_same_result(pretrain(config(images, tmp_path / "cut", **settings)), alone)


def test_another_size_from_an_encoder_alone(run: Path, images: Path, tmp_path: Path, capsys):
    settings = {"weights": str(run / "encoder.safetensors"), "img_size": (16, 24), "in_chans": 3, "channels": "mean"}
    out = pretrain(config(images, tmp_path / "b", epochs=1, **settings))
    said = " ".join(capsys.readouterr().err.split())
    assert "adapted (pos_embed, patch_embed.proj.weight)" in said and "new, at random (mask_token" in said
    assert emae.load(out).config.img_size == (16, 24)
    assert read_settings(out).settings["mean"] == [0.25] * 3


def test_what_cannot_be(run: Path, images: Path, tmp_path: Path):
    for settings, said in (
        (
            {"weights": str(run), "model": "mae_vit_small_patch4"},
            "less than half: .*give --model mae_vit_tiny_patch4",
        ),
        ({"weights": str(tmp_path / "nothing")}, "no such file or directory"),
        ({"weights": str(run), "in_chans": 3}, "in_chans=3, but the weights are for 1 channels"),
        ({"channels": "mean"}, "channels=mean: only with --weights"),
        ({"resume_optimizer": True}, "resume_optimizer=True: only with --weights"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain(config(images, tmp_path / "b", **settings))
        assert not (tmp_path / "b").exists()


def test_settings_that_are_not_given_are_the_runs(run: Path, tmp_path: Path, capsys):
    assert main(["pretrain", "--weights", str(run), "--out", str(tmp_path / "b"), "--epochs", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert f"settings that aren't given are those of {run / 'config.yaml'}" in " ".join(printed.err.split())
    assert json.loads(printed.out)["run"] == str(tmp_path / "b")
    theirs, ours = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, tmp_path / "b"))
    assert {name for name in ours if ours[name] != theirs[name]} == {"out", "weights", "epochs", "warmup_epochs"}


@pytest.mark.parametrize(("epochs", "expected"), [(50, 10.0), (2, 0.4), (400, 40.0)])
def test_a_usual_warmup_is_that_of_the_epochs_to_come(
    run: Path, tmp_path: Path, capsys, epochs: int, expected: float
):
    """Of the docs: 40 epochs, or a fifth of all. The run had 4, so 0.8, which nobody gave."""
    assert read_settings(run).settings["warmup_epochs"] == 0.8
    for given in (["--weights", str(run)], ["--config", str(run / "config.yaml")]):
        assert settled(capsys, *given, "--out", str(tmp_path / "b"), "--epochs", str(epochs)) == expected
        assert settled(capsys, *given, "--out", str(tmp_path / "b"), "--warmup_epochs", "0.5") == 0.5


def test_a_given_warmup_is_kept(run: Path, images: Path, tmp_path: Path, capsys):
    other = pretrain(config(images, tmp_path / "a", epochs=4, warmup_epochs=0.5))
    for given in (["--weights", str(other)], ["--config", str(other / "config.yaml")]):
        assert settled(capsys, *given, "--out", str(tmp_path / "b"), "--epochs", "50") == 0.5


def settled(capsys: pytest.CaptureFixture[str], *given: str) -> float:
    """The warm-up of a run by these flags."""
    with pytest.raises(SystemExit):
        main(["pretrain", *given, "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    settings.pop("json", None)
    source = open_source(settings["data"])
    parsed = RunRecord("pretrain", None, settings).restore(PretrainConfig.of(settings["model"]))
    return resolve(parsed, source, torch.device("cpu")).warmup_epochs


def test_so_it_is_from_python(run: Path, tmp_path: Path):
    result = emae.pretrain(weights=run, out=tmp_path / "b", epochs=1)
    theirs, ours = (read_settings(folder).settings for folder in (run, Path(result.run)))
    assert {name for name in ours if ours[name] != theirs[name]} == {"out", "weights", "epochs", "warmup_epochs"}


def test_they_are_adapted_to_another_number_of_channels(run: Path, tmp_path: Path):
    result = emae.pretrain(weights=run, out=tmp_path / "b", epochs=1, in_chans=3, channels="mean")
    assert read_settings(Path(result.run)).settings["mean"] == [0.25] * 3


def test_with_a_model_nothing_is_the_runs(run: Path, images: Path, tmp_path: Path):
    small = flags(data=images, epochs=1, batch_size=8, **TINY)
    assert main(["pretrain", "--weights", str(run), "--out", str(tmp_path / "b"), *small]) == 0
    assert read_settings(tmp_path / "b").settings["base_lr"] == 1.5e-4
