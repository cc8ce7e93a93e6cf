"""A decoder of cross-attention, and what is chosen or shuffled by chance, through pre-training."""

import json
from pathlib import Path

import pytest
import timm
import torch

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.methods.mae import MaskedAutoencoder
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.processes import spawn

from .conftest import TINY
from .labelled import stop_after_checkpoints

SETTINGS = {
    "cross": {"decoder": "cross", "beta": 20.0},
    "cross, farthest": {"decoder": "cross", "targets": "farthest", "prediction_ratio": 0.5, "beta": None},
    "shuffled": {"shuffle": "difficulties", "beta": 20.0},
    "random": {"targets": "random", "prediction_ratio": 0.3, "beta": None},
}


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    small = {**TINY, "depth": 2, "decoder_depth": 2, "num_workers": 0, "epochs": 2, "batch_size": 8}
    small |= {"checkpoint_every": 7, "panel_every": 2, "log_every": 1, "accum_iter": 2}
    return PretrainConfig(data=str(data), out=str(out), **(small | settings))


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: pretrain(config(images, folder / name, **settings)) for name, settings in SETTINGS.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_and_resumed_is_bit_identical(
    name: str, runs: dict[str, Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_after_checkpoints(patch, 1)
        pretrain(config(images, tmp_path / "a", **SETTINGS[name]))
    again = pretrain(config(images, tmp_path / "a", **SETTINGS[name], num_workers=2))
    assert (again / "encoder.safetensors").read_bytes() == (runs[name] / "encoder.safetensors").read_bytes()


def test_another_decoder_is_another_run(runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="decoder"):
        pretrain(config(images, runs["cross"], beta=20.0))


def two_processes(rank: int, settings: tuple[PretrainConfig, ...]) -> None:
    for one in settings:
        pretrain(one)


def test_two_processes_train_as_one(runs: dict[str, Path], images: Path, tmp_path: Path):
    """Each sample has its masks and targets wherever it is; sharded blocks find their features."""
    cases = [(name, parallel) for name in SETTINGS for parallel in ("ddp", "fsdp")]
    settings = tuple(
        config(images, tmp_path / f"{name}-{parallel}", **SETTINGS[name], parallel=parallel)
        for name, parallel in cases
    )
    spawn(2, two_processes, settings)
    for (name, _), one in zip(cases, settings):
        losses = [
            [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in (runs[name], Path(one.out))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 10


def test_what_is_made_of_the_run(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = runs["cross"]
    model = emae.load(run)
    assert isinstance(model, MaskedAutoencoder) and model.config.decoder == "cross"
    assert (run / "figures" / "panel-epoch-0002.png").is_file()
    assert main(["report", "--run", str(runs["cross, farthest"])]) == 0
    assert "targets farthest 0.5" in (runs["cross, farthest"] / "report.html").read_text()
    picture = tmp_path / "picture.png"
    assert (
        main(["reconstruct", "--weights", str(run), "--image", str(images / "000.png"), "--out", str(picture)]) == 0
    )
    assert picture.is_file()

    assert main(["export", "--weights", str(run), "--out", str(tmp_path / "timm")]) == 0
    vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(pixels), model.backbone.forward_features(pixels))
    encoder = emae.load(run / "encoder.safetensors")
    assert encoder.state_dict().keys() == model.backbone.state_dict().keys()

    capsys.readouterr()
    arguments = ["export", "--weights", str(run), "--out", str(tmp_path / "hf"), "--format", "transformers"]
    assert main(arguments) == 2
    assert "decoder=cross: transformers' ViTMAEForPreTraining has MAE's decoder" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_the_flags_are_explained(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--decoder DECODER what predicted patches attend to: self" in said
    assert "--targets TARGETS what is reconstructed: p2dist" in said and "--prediction_ratio" in said
