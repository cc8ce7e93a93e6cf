"""SimMIM with a Swin does all that MAE does with a ViT: it asks the house for nothing of its own."""

from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.bench import flops_tables
from efficient_mae.cli import main
from efficient_mae.methods import METHODS
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.processes import spawn
from tests.tasks.conftest import assert_same_result, flags, result_of, rows
from tests.tasks.labelled import stop_after_checkpoints, write_labelled

timm = pytest.importorskip("timm")
MODEL = {"model": "simmim_swin_tiny_window4", "img_size": 16, "in_chans": 1, "depth": "1,1", "mask_unit": 8}
HOST = {"precision": "fp32", "device": "cpu", "num_workers": 0}
RUN = {**MODEL, **HOST, "batch_size": 16, "epochs": 3, "base_lr": 1e-2, "warmup_epochs": 1, "log_every": 1,
       "checkpoint_every": 5, "keep_checkpoints": 20, "panel_every": 3, "knn_every": 3}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("swin") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swin") / "run"
    assert main(["pretrain", *flags(data=data, out=out, **RUN)]) == 0
    return out


def test_it_learns_and_is_watched(run: Path):
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert [row["knn"] for row in rows(run) if "knn" in row][-1] > 1 / 3
    assert (run / "figures" / "panel-epoch-0003.png").stat().st_size > 10_000
    assert "Multiply-accumulates" in (run / "report.html").read_text()


@pytest.mark.parametrize("changed", [{}, {"accum_iter": 2}], ids=["killed", "accumulated"])
def test_however_it_is_cut_the_run_is_the_same(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict
):
    command = ["pretrain", *flags(data=data, out=tmp_path / "run", **RUN | changed)]
    if changed:
        assert main(command) == 0
        ours, theirs = ([row["loss"] for row in rows(one) if "loss" in row] for one in (tmp_path / "run", run))
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-5)
        return
    with monkeypatch.context() as patch:
        stop_after_checkpoints(patch, 2)
        assert main(command) == 1
    assert main(command) == 0
    assert_same_result(tmp_path / "run", run)


def _pretrain(rank: int, *configs: PretrainConfig) -> None:
    for config in configs:
        pretrain(config)


def test_two_processes_do_the_same_run(run: Path, data: Path, tmp_path: Path):
    settings = RUN | {"depth": (1, 1), "data": str(data)}
    kinds = ("ddp", "fsdp")
    spawn(2, _pretrain, *(PretrainConfig(**settings, out=str(tmp_path / kind), parallel=kind) for kind in kinds))
    for kind in kinds:
        ours, theirs = (
            [(row["loss"], row["grad_norm"]) for row in rows(one) if "loss" in row] for one in (tmp_path / kind, run)
        )
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_it_is_handed_over(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result_of(capsys, "export", *flags(weights=run, out=tmp_path / "timm", format="timm"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert type(theirs).__name__ == "SwinTransformer"
    images, model = torch.randn(2, 1, 16, 16), emae.load(run)
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(images), model.backbone.forward_features(images))
        again = emae.load(run / "encoder.safetensors")
        torch.testing.assert_close(again.pooled(images), model.backbone.pooled(images))
        result_of(capsys, "export", *flags(weights=run, out=tmp_path / "alone", format="safetensors", img_size=32))
        larger = emae.load(tmp_path / "alone" / "encoder.safetensors")
    assert larger.img_size == (32, 32) and larger.window_size == 8
    assert main(["reconstruct", *flags(weights=run, image=run / "figures" / "panel-epoch-0003.png",
                 out=tmp_path / "a.png", device="cpu")]) == 0  # fmt: skip


def test_it_is_judged(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    judged = result_of(capsys, "knn", *flags(weights=run, data=data, k=5, **HOST))
    assert judged["accuracy"]["trained"] > 1 / 3
    tune = {"data": data, "weights": run, **HOST, "batch_size": 16, "epochs": 1}
    tuned = result_of(capsys, "finetune", *flags(out=tmp_path / "tuned", **tune))
    assert tuned["test_images"] == 36
    probed = result_of(capsys, "linear-probe", *flags(out=tmp_path / "probed", **tune))
    assert probed["test_images"] == 36 and "pool: avg" in (tmp_path / "probed" / "config.yaml").read_text()
    assert main(["linear-probe", *flags(out=tmp_path / "token", pool="token", **tune)]) == 2
    assert "pool='token': of a swin encoder it must be avg" in capsys.readouterr().err


def test_it_is_timed_and_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    small = {**MODEL, "device": "cpu", "precision": "fp32", "rounds": 1, "batch_size": 4, "memory": False}
    assert [row["name"] for row in result_of(capsys, "bench", "step", *flags(**small))["methods"]] == ["simmim"]
    monkeypatch.setattr(flops_tables, "METHODS", {"simmim": METHODS["simmim"]})  # other methods' rows take longer
    table = result_of(capsys, "bench", "flops", "--masks", "1")["rows"]
    ours = {row["model"]: row for row in table}
    assert len(ours) == 3
    assert all(row["method"] == "SimMIM" and abs(row["difference"]) < 0.01 for row in ours.values())


def test_what_it_cannot_do_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for changed, message in (
        ({"mask_unit": 12}, "mask_unit=12: does not divide images of 16x16"),
        ({"model": "simmim_swin_tiny_window3"}, "window_size=3 does not divide the 4 x 4 places of stage 1"),
        ({"compile": True}, "compile=true: blocks of this model are timm's"),
    ):
        assert main(["pretrain", *flags(data=data, out=tmp_path / "run", **RUN | changed)]) == 2
        assert message in capsys.readouterr().err
