"""`emae export`, and the README's lines on it, run as they stand."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer
from transformers import TimmWrapperModel, ViTMAEForPreTraining

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.engine.storage.durable import save_tensors
from efficient_mae.interop import ImageStatistics, adapt_statistics, file_metadata, load_statistics, save_encoder
from efficient_mae.interop.timm_models import describe_run
from efficient_mae.tasks.export import command as task
from efficient_mae.tasks.export.command import FORMATS, ExportConfig, export
from tests.interop.conftest import STATISTICS, save_model, small_model

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What export reads of a run directory."""
    folder = tmp_path_factory.mktemp("export") / "run"
    checkpoint = folder / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    model, file = small_model(), folder / "encoder.safetensors"
    save_model(checkpoint / "model.safetensors", model)
    save_encoder(file, model, STATISTICS)
    describe_run(file, model.backbone.state_dict(), model.backbone, STATISTICS)
    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_loaded_back_and_compared(form: str, run: Path, tmp_path: Path, capsys):
    out = tmp_path / 'a "deep" \\ place' / "out"
    assert main(["export", "--weights", str(run), "--out", str(out), "--format", form, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["largest_difference"] < 1e-5
    assert result["files"] == sorted(path.name for path in out.iterdir()) and len(list(out.parent.iterdir())) == 1
    assert all(path.stat().st_mode & 0o044 for path in out.iterdir()), "others cannot read it"
    # The printed lines work, for any number of images.
    names: dict = {"images": torch.randn(5, 3, 32, 32)}
    if form == "onnx":
        names["images"] = names["images"].numpy()
    exec(result["snippet"], names)
    if "tokens" in names:
        assert names["tokens"].shape == (5, 17, 192)
    assert main(["export", "--weights", str(run), "--out", str(tmp_path / "again"), "--format", form]) == 0
    assert "differ by" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings", [{"difficulty": "visible_neighbours", "beta": None}, {"schedule": "normalise", "beta": None}]
)
def test_transformers_has_models_of_other_objectives(settings: dict, tmp_path: Path):
    save_model(tmp_path / "model.safetensors", small_model(gamma=0.0, **settings))
    weights, out = str(tmp_path / "model.safetensors"), str(tmp_path / "out")
    found = export(ExportConfig(weights=weights, out=out, format="transformers"))
    assert 0 <= found.largest_difference < 1e-5


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "transformers"])
def test_an_encoder_adapted_to_other_images(form: str, run: Path, tmp_path: Path):
    settings = dict(weights=str(run), format=form, img_size=(48, 80), patch_size=16, in_chans=1, channels="mean")
    result = export(ExportConfig(**settings, out=str(tmp_path / "out")))
    assert result.largest_difference < 1e-4
    if form in ("timm", "safetensors"):
        encoder = emae.load(tmp_path / "out")
        assert (encoder.img_size, encoder.patch_size, encoder.in_chans) == ((48, 80), 16, 1)
        assert load_statistics(tmp_path / "out") == adapt_statistics(STATISTICS, 1, "mean")


def test_exports_are_weights_again(run: Path, tmp_path: Path):
    export(ExportConfig(weights=str(run), out=str(tmp_path / "hf"), format="transformers"))
    export(ExportConfig(weights=str(tmp_path / "hf"), out=str(tmp_path / "timm")))
    export(ExportConfig(weights=str(tmp_path / "timm"), out=str(tmp_path / "safetensors"), format="safetensors"))
    first, last = emae.load(run).state_dict(), emae.load(tmp_path / "safetensors").state_dict()
    assert all(torch.equal(value, first[name]) for name, value in last.items())
    assert load_statistics(tmp_path / "safetensors") == STATISTICS


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("beit_vit_tiny_patch8", {"depth": 2, "smallest_block": 2}, "BeitForMaskedImageModeling"),
        ("simmim_swin_tiny_window4", {"depth": (1, 1), "mask_unit": 8}, "SwinForMaskedImageModeling"),
    ],
)
def test_transformers_has_other_methods_whole(name: str, settings: dict, kind: str, tmp_path: Path):
    torch.manual_seed(0)
    model = emae.create_model(name, img_size=32, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    file = tmp_path / "model.safetensors"
    save_tensors(file, model.state_dict(), file_metadata(model.config, STATISTICS))
    result = export(ExportConfig(weights=str(file), out=str(tmp_path / "hf"), format="transformers"))
    assert result.largest_difference < 1e-5
    names: dict = {}
    exec(result.snippet, names)
    assert type(names["model"]).__name__ == kind
    images, mask = torch.randn(2, 3, 32, 32), model.plan(2, torch.Generator().manual_seed(1)).mask
    with torch.no_grad():
        theirs = names["model"](images, bool_masked_pos=mask.flatten(1))[0 if kind.startswith("Beit") else 1]
        again = emae.load(tmp_path / "hf")
        latent = again.backbone.forward_masked(images, mask, again.mask_token)
        ours = again.lm_head(latent).flatten(1, 2) if kind.startswith("Beit") else again(images, mask).reconstruction
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_transformers_has_not(tmp_path: Path):
    model = emae.create_model("maskfeat_vit_tiny_patch8", img_size=32, depth=1)
    save_tensors(tmp_path / "m.safetensors", model.state_dict(), file_metadata(model.config, STATISTICS))
    with pytest.raises(ValueError, match="maskfeat, and transformers has models of mae, beit and simmim alone"):
        export(ExportConfig(weights=str(tmp_path / "m.safetensors"), out=str(tmp_path / "o"), format="transformers"))
    assert not (tmp_path / "o").exists()


def test_outputs_that_differ_are_an_error_and_leave_nothing(run: Path, tmp_path: Path, monkeypatch):
    def wrong(folder: Path, model, statistics: ImageStatistics):
        with torch.no_grad():
            model.backbone.norm.bias.add_(0.01)
        FORMATS["timm"].write(folder, model, statistics)
        with torch.no_grad():
            model.backbone.norm.bias.sub_(0.01)

    form = task.Format(wrong, FORMATS["timm"].differences, FORMATS["timm"].snippet)
    monkeypatch.setitem(task.FORMATS, "wrong", form)
    with pytest.raises(RuntimeError, match="gives other outputs than the model: they differ by 1.0e-02"):
        export(ExportConfig(weights=str(run), out=str(tmp_path / "out"), format="wrong"))
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_exported(run: Path, tmp_path: Path, monkeypatch):
    def refused(what: str, **settings):
        with pytest.raises(ValueError, match=what):
            export(ExportConfig(**{"weights": str(run), "out": str(tmp_path / "out"), **settings}))
        assert not (tmp_path / "out").exists()

    refused("format='keras': must be one of timm, transformers", format="keras")
    refused("no such file or directory", weights="/nowhere")
    refused("in_chans=4, but the weights are for 3 channels", in_chans=4)
    refused("img_size: a decoder can't be adapted", format="transformers", img_size=64)
    save_encoder(tmp_path / "encoder.safetensors", emae.load(run), STATISTICS)
    refused("needs the decoder", format="transformers", weights=str(tmp_path / "encoder.safetensors"))
    with pytest.raises(ValueError, match="isn't an empty folder"):
        export(ExportConfig(weights=str(run), out=str(run)))
    with pytest.raises(ValueError, match="isn't an empty folder"):
        export(ExportConfig(weights=str(run), out=str(tmp_path / "encoder.safetensors")))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(r"onnxscript isn't installed; pip install 'efficient-mae\[onnx\]'", format="onnx")


def test_the_readmes_lines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    section = re.search(r"^## Hand over an encoder\n(.*?)(?=^## )", README.read_text() + "\n## ", re.S | re.M)
    assert section, "the README has no section 'Hand over an encoder'"
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section[1], re.S | re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(run)
    names: dict = {}
    for language, text in blocks:
        if language == "python":
            exec(text, names)
        for line in re.findall(r"^\$ emae (export .*)$", text, re.M) if language == "console" else ():
            assert main(shlex.split(line)) == 0
    weight = emae.load(run).backbone.blocks[1].mlp.fc2.weight
    vits = [value for value in names.values() if isinstance(value, VisionTransformer)]
    wholes = [value for value in names.values() if isinstance(value, ViTMAEForPreTraining)]
    assert vits and all(torch.equal(vit.blocks[1].mlp.fc2.weight, weight) for vit in vits)
    wrapped = [value for value in names.values() if isinstance(value, TimmWrapperModel)]
    assert wrapped and all(torch.equal(hf.timm_model.blocks[1].mlp.fc2.weight, weight) for hf in wrapped)
    assert wholes and all(torch.equal(hf.vit.layers[1].mlp.fc2.weight, weight) for hf in wholes)
