"""A method of 75 lines that the house has never seen does all that MAE does: a guest, registered in one call."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import normalize
from efficient_mae.interop import ImageStatistics, load_config
from efficient_mae.methods import MethodSettings, Output, register
from efficient_mae.tasks import pretrain, pretrain_config
from efficient_mae.tasks.panels import draw_panel
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.methods import toy
from tests.tasks.conftest import assert_same_result, flags, result_of, rows
from tests.tasks.labelled import stop_after_checkpoints, write_labelled

MODEL = {"model": "colour_vit_tiny_patch4", "img_size": 16, "in_chans": 1, "depth": 1, "hidden": 0.4}
RUN = {**MODEL, "precision": "fp32", "device": "cpu", "num_workers": 0, "batch_size": 16, "epochs": 6,
       "warmup_epochs": 1, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 20}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "run"
    assert main(["pretrain", *flags(data=data, out=out, **RUN)]) == 0
    return out


def test_it_learns(run: Path):
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert type(emae.load(run)) is toy.Colour
    assert load_config(run).to_dict() == {
        "img_size": [16, 16], "in_chans": 1, "depth": 1, "patch_size": 4, "embed_dim": 192, "num_heads": 3,
        "hidden": 0.4,
    }  # fmt: skip


def test_its_settings_are_flags(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--model", "colour_vit_tiny_patch4", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "share of patches whose colour is asked for" in shown and "--beta BETA" not in shown
    assert main(["pretrain", *flags(model="colour_vit_tiny_patch4", hiden=0.4, data="d", out="o")]) == 2
    assert "unknown flag --hiden; did you mean --hidden?" in capsys.readouterr().err
    assert main(["pretrain", *flags(model="colour_vit_tiny_patch4", hidden=1.4, data="d", out="o")]) == 2
    assert "hidden=1.4: must be greater than 0 and less than 1" in capsys.readouterr().err


def test_killed_it_resumes_to_the_same_bits(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["pretrain", *flags(data=data, out=tmp_path / "run", **RUN)]
    with monkeypatch.context() as patch:
        stop_after_checkpoints(patch, 3)
        assert main(command) == 1
    assert main(command) == 0
    assert_same_result(tmp_path / "run", run)
    assert rows(tmp_path / "run") == rows(run)


def test_a_step_that_it_skips_is_replayed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images = tmp_path / "data"
    shutil.copytree(data, images)
    white = next((images / "train" / "blob").iterdir())
    Image.new("L", (16, 16), 255).save(white)

    def white_is_infinite(images: torch.Tensor, mean, std) -> torch.Tensor:
        hot = (images == 255).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(hot, torch.inf, normalize(images, mean, std))

    steps: list[toy.Colour] = []
    monkeypatch.setattr(toy.Colour, "after_step", lambda method: steps.append(method))
    monkeypatch.setattr(pretrain, "normalize", white_is_infinite)
    out = tmp_path / "run"
    assert main(["pretrain", *flags(data=images, out=out, **RUN | {"epochs": 2})]) == 0
    assert len(steps) == len(rows(out)) == 2 * (120 // 16)
    found = result_of(capsys, "replay", "--run", str(out))
    assert found["reproduced"]
    bad = [sample["name"] for sample in found["samples"] if isinstance(sample["loss"], str)]
    assert len(bad) == 1 and bad[0].endswith(f"blob/{white.name}")


def test_it_is_timed_and_counted(capsys: pytest.CaptureFixture[str]):
    small = {**MODEL, "device": "cpu", "precision": "fp32", "rounds": 1, "batch_size": 4, "memory": False}
    timed = result_of(capsys, "bench", "step", *flags(**small))
    assert [row["name"] for row in timed["methods"]] == ["colour"] and timed["p2dist_share"] is None
    assert timed["methods"][0]["images_per_second"] > 0 and timed["masks_share"] > 0
    # By hand: the patches and the class token through the encoder, and the mean with a place to a colour.
    counted = ["bench", "flops", "--model", MODEL["model"], "--masks", "2"]
    (row,) = result_of(capsys, *counted)["rows"]
    tokens, width, depth = 1 + 56 * 56 // 2, 192, 12
    macs = (tokens - 1) * 4 * 4 * 3 * width + depth * (12 * width**2 * tokens + 2 * width * tokens**2)
    assert row["computed"] == pytest.approx((macs + 56 * 56 // 2 * width * 3) / 1e9, rel=1e-3)
    assert main(counted) == 0
    assert "colour" in capsys.readouterr().out
    assert main(["bench", "step", *flags(**small)]) == 0
    said = capsys.readouterr().out
    assert "masks take one core" in said and "P2Dist" not in said and "packing" not in said
    cost = result_of(capsys, "info", *flags(**MODEL))["cost"]
    assert cost["masked_patches"] == 7 and cost["ratio"] == 1


def test_it_is_reported(run: Path):
    page = (run / "report.html").read_text()
    assert "Loss" in page and "Multiply-accumulates" in page
    assert "P²Dist" not in page and not list(run.rglob("panel-*.png"))


def test_it_is_exported_and_judged(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    timm = pytest.importorskip("timm")
    result_of(capsys, "export", *flags(weights=run, out=tmp_path / "timm", format="timm"))
    vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    whole, images = emae.load(run), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(images), whole.backbone.forward_features(images))
    names = load_file(run / "encoder.safetensors").keys()
    assert names == timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0).state_dict().keys()
    judged = result_of(capsys, "knn", *flags(weights=run, data=data, device="cpu", k=5, num_workers=0))
    assert judged["accuracy"]["trained"] > 0.5


def test_what_it_cannot_do_is_one_line(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = next((data / "val" / "blob").iterdir())
    assert main(["reconstruct", *flags(weights=run, image=picture, out=tmp_path / "a.png")]) == 2
    assert "a model of colour predicts no pixels" in capsys.readouterr().err
    assert main(["export", *flags(weights=run, out=tmp_path / "hf", format="transformers")]) == 2
    assert "colour" in capsys.readouterr().err


class Painter(toy.Colour):
    """A guest that fills hidden patches with their colours."""

    def paint(self, images: torch.Tensor, out: Output) -> torch.Tensor:
        hidden = out.mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return images.masked_fill(hidden[:, None], 0.0)


def test_what_it_paints_is_drawn(run: Path, tmp_path: Path):
    model = Painter(load_config(run))
    statistics = ImageStatistics((0.5,), (0.5,))
    figure = draw_panel(
        model, torch.randn(3, 1, 16, 16), model.plan(3), statistics, title="", path=tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000
    words = " ".join(text.get_text() for text in figure.texts)
    assert (
        "P²Dist" not in words
        and "Loss of each patch" in words
        and "7 of 16 patches hidden" in words
        and "beta" not in words
    )


def test_settings_keep_to_one_method():
    given = PretrainConfig(data="d", out="o", **MODEL)
    assert type(given) is PretrainConfig.of(MODEL["model"]) and dataclasses.replace(given, hidden=0.2).hidden == 0.2
    assert pickle.loads(pickle.dumps(given)) == given
    with pytest.raises(ValueError, match="model=mae_vit_tiny_patch4: of another method"):
        dataclasses.replace(given, model="mae_vit_tiny_patch4")


def test_the_last_model_that_is_named_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: mae_vit_tiny_patch4\nimg_size: 16\nbeta: 30.0\n")
    toys = ["--model", MODEL["model"]]
    assert result_of(capsys, "info", *toys, "--config", str(recipe))["model"]["beta"] == 30.0
    assert main(["info", "--config", str(recipe), *toys]) == 2
    assert "unknown key 'beta'" in capsys.readouterr().err


def test_what_cannot_be_registered_is_refused():
    class Again(toy.Colour):
        pass

    with pytest.raises(ValueError, match="'colour' is known already"):
        register(Again)

    class Clash(toy.Colour):
        def __init__(self, config: toy.ColourConfig):
            super().__init__(config)
            self.norm = torch.nn.LayerNorm(config.embed_dim)

    clash = Clash(toy.ColourConfig.resolve("colour_vit_tiny_patch4", toy.ColourSettings(img_size=16)))
    with pytest.raises(ValueError, match="Clash: its own norm.weight has the name of one of its backbone's"):
        clash.state_dict()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SeedSettings(MethodSettings):
        seed: float = 0.5

    class Seeded(toy.Colour):
        Settings = SeedSettings

    with pytest.raises(ValueError, match=r"Seeded: its settings \['seed'\] have the names of a command's"):
        pretrain_config._with_method(PretrainConfig, Seeded)
