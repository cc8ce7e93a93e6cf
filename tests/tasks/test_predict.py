"""Fine-tuned and probed runs are weights: `emae predict`, exports, timm and transformers find the same classes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open, save_file
from transformers import AutoModel, AutoModelForImageClassification

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import normalize, open_source
from efficient_mae.interop import ImageStatistics, load_statistics, save_encoder
from efficient_mae.interop.classifiers import adapt_classifier, load_classifier
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.embed import EmbedConfig, embed
from efficient_mae.tasks.export.command import ExportConfig, export
from efficient_mae.tasks.export.formats import CLASSIFIER_FORMATS
from efficient_mae.tasks.predict import PredictConfig, predict

from .labelled import QUICK, stop_after_checkpoints, write_labelled

CLASSES = ("blob", "stripes", "void")
COMMON = {"num_workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "data", train=20)


@pytest.fixture(scope="module", params=["finetune", "token", "avg"])
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fine-tuning, and of probing by either pool."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(2)
    model = emae.create_model("mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1, decoder_depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_encoder(folder / "encoder.safetensors", model, ImageStatistics((0.4,), (0.3,)))
    common = dict(data=str(data), out=str(folder / "run"), weights=str(folder / "encoder.safetensors"), epochs=1)
    if request.param == "finetune":
        plain = dict(auto_augment=None, mixup=0.0, cutmix=0.0, random_erasing=0.0, ema_decay=0.5)
        finetune(FinetuneConfig(**common, **QUICK, base_lr=0.01, **plain))
    else:
        linear_probe(LinearProbeConfig(**common, **QUICK, base_lr=20.0, pool=request.param))
    return folder / "run"


@pytest.fixture(scope="module")
def held_out(data: Path) -> torch.Tensor:
    """The held-out images, normalised."""
    source = open_source(str(data), "test")
    images = [torch.from_numpy(np.array(source.image(index)))[None] for index in range(len(source))]
    return normalize(torch.stack(images), (0.4,), (0.3,))


def table(run: Path, data: Path, out: Path, **others: Any) -> list[dict[str, Any]]:
    predict(PredictConfig(weights=str(run), data=str(data), out=str(out), part="test", **COMMON | others))
    if out.suffix == ".parquet":
        return parquet.read_table(out).to_pylist()
    with out.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_as_right_as_the_run_was(run: Path, data: Path, held_out: torch.Tensor, tmp_path: Path):
    rows = table(run, data, tmp_path / "p.csv")
    top1 = json.loads((run / "results.json").read_text())["top1"]
    assert np.mean([Path(row["name"]).parent.name == row["class_1"] for row in rows]) == pytest.approx(top1, abs=1e-6)
    with torch.no_grad():
        likely = timm.create_model(f"local-dir:{run}", pretrained=True).eval()(held_out).softmax(1)
    for row, expected in zip(rows, likely, strict=True):
        order = expected.argsort(descending=True).tolist()
        assert [row[f"class_{place}"] for place in (1, 2, 3)] == [CLASSES[number] for number in order]
        found = [float(row[f"probability_{place}"]) for place in (1, 2, 3)]
        assert found == pytest.approx(expected[order].tolist(), abs=1e-5) and sum(found) == pytest.approx(1, abs=1e-5)
    assert list(rows[0]) == [
        "name", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"
    ]  # fmt: skip
    two = table(run, data, tmp_path / "p.parquet", top=2)
    assert list(two[0]) == list(rows[0])[:5]
    assert [row["class_2"] for row in two] == [row["class_2"] for row in rows]
    assert two[3]["probability_1"] == pytest.approx(float(rows[3]["probability_1"]), rel=1e-5)


def test_a_run_is_loaded_by_one_call_of_timm_and_of_transformers(run: Path, held_out: torch.Tensor):
    vit = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    hf = AutoModelForImageClassification.from_pretrained(run).eval()
    assert tuple(vit.pretrained_cfg["label_names"]) == CLASSES == tuple(hf.config.id2label.values())
    ours = load_classifier(run)
    assert ours.head.classes == CLASSES and ours.statistics.size == (16, 16)
    data = timm.data.resolve_model_data_config(vit)
    assert (data["input_size"], tuple(data["mean"]), tuple(data["std"])) == ((1, 16, 16), (0.4,), (0.3,))
    with torch.no_grad():
        torch.testing.assert_close(vit(held_out), ours.vit(held_out))
        torch.testing.assert_close(hf(held_out).logits, ours.vit(held_out))
        tokens = emae.load(run).forward_features(held_out)
        torch.testing.assert_close(
            AutoModel.from_pretrained(run).eval()(held_out[:2]).last_hidden_state.shape, tokens[:2].shape
        )


@pytest.mark.parametrize("form", CLASSIFIER_FORMATS)
def test_every_export_is_the_classifier(form: str, run: Path, data: Path, held_out: torch.Tensor, tmp_path: Path):
    result = export(ExportConfig(weights=str(run), out=str(tmp_path / "out"), format=form))
    assert result.largest_difference < 1e-5
    names: dict[str, Any] = {"images": held_out.numpy() if form == "onnx" else held_out}
    exec(result.snippet, names)
    logits = load_classifier(run).vit(held_out)
    if "logits" in names:
        np.testing.assert_allclose(np.asarray(torch.as_tensor(names["logits"]).detach()), logits.detach(), atol=1e-5)
    if form in ("timm", "transformers"):
        assert load_classifier(tmp_path / "out").head.classes == CLASSES
        assert table(tmp_path / "out", data, tmp_path / "a.csv") == table(run, data, tmp_path / "b.csv")


def test_another_name_in_an_export_is_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    form = CLASSIFIER_FORMATS["timm"]

    def misspelt(folder: Path, *arguments: Any) -> None:
        form.write(folder, *arguments)
        file = folder / "config.json"
        file.write_text(file.read_text().replace("stripes", "spots"))

    monkeypatch.setitem(CLASSIFIER_FORMATS, "timm", type(form)(misspelt, form.differences, form.snippet))
    with pytest.raises(RuntimeError, match="gives the classes other names"):
        export(ExportConfig(weights=str(run), out=str(tmp_path / "out")))
    assert not any(tmp_path.iterdir())


def test_its_encoder_is_judged_embedded_and_tuned_again(
    run: Path, data: Path, held_out: torch.Tensor, tmp_path: Path
):
    encoder, vit = emae.load(run), load_classifier(run).vit
    with torch.no_grad():
        before = vit.forward_features(held_out)
        expected = vit.fc_norm(before) if load_classifier(run).head.fc_norm else before
        torch.testing.assert_close(encoder.forward_features(held_out), expected, rtol=1e-4, atol=1e-5)
    assert load_statistics(run).mean == (0.4,)
    assert knn(KnnConfig(weights=str(run), k=3, **COMMON)).data == str(data)
    out = tmp_path / "f.npy"
    embed(EmbedConfig(weights=str(run), data=str(data), part="test", out=str(out), **COMMON))
    np.testing.assert_allclose(np.load(out), expected[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    tuned = finetune(FinetuneConfig(weights=str(run), data=str(data), out=str(tmp_path / "again"), epochs=1, **QUICK))
    assert tuned.weights == str(run)
    start = load_file(run / "classifier.safetensors")["blocks.0.mlp.fc1.weight"]
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, start)


@pytest.mark.parametrize("run", ["token"], indirect=True)
def test_an_unfinished_probe_is_its_encoder(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = run.parent / "encoder.safetensors"
    given = dict(weights=str(weights), data=str(data), out=str(tmp_path / "run"), epochs=1, base_lr=20.0)
    stop_after_checkpoints(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        linear_probe(LinearProbeConfig(**given, **QUICK, checkpoint_every=1))
    found, expected = emae.load(tmp_path / "run").state_dict(), emae.load(weights).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="holds no classifier; give a finished run"):
        predict(PredictConfig(weights=str(tmp_path / "run"), data=str(data), out=str(tmp_path / "p.csv")))


def test_a_classifier_adapts_as_its_encoder_does(run: Path):
    classifier = load_classifier(run)
    adapted = adapt_classifier(classifier, (24, 32), in_chans=3, channels="mean")
    grey = torch.randn(2, 1, 24, 32)
    assert (adapted.img_size, adapted.in_chans, adapted.statistics.mean) == ((24, 32), 3, (0.4,) * 3)
    # The head is untouched, and three channels that are alike are one.
    with torch.no_grad():
        alone = adapt_classifier(classifier, (24, 32)).vit(grey)
        torch.testing.assert_close(adapted.vit(grey.expand(-1, 3, -1, -1)), alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            adapt_classifier(classifier).vit(grey[..., :16, :16]), classifier.vit(grey[..., :16, :16])
        )


def test_what_is_no_classifier(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(what: str, **others: Any):
        given = {"weights": run, "data": data, "out": tmp_path / "p.csv", **COMMON, **others}
        assert main(["predict", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]) == 2
        said = capsys.readouterr().err
        assert what in said and len([line for line in said.splitlines() if line.startswith("emae: ")]) == 1

    refused("holds no classifier; give a finished run of emae finetune or emae linear-probe", weights=run.parent)
    refused("holds no classifier; give a finished run of emae finetune or emae linear-probe", weights=tmp_path)
    refused("no such file or directory", weights="/nowhere")
    refused("must end in .csv or .parquet", out=tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"format=safetensors writes encoders.*take one of timm"):
        export(ExportConfig(weights=str(run), out=str(tmp_path / "out"), format="safetensors"))
    # Headers that lie.
    file = run / "classifier.safetensors"
    with safe_open(file, "pt") as tensors:
        header = json.loads(tensors.metadata()["efficient_mae"])
    other = tmp_path / "lie.safetensors"
    for change in ({"classes": ["a"]}, {"classes": [1, 2, 3]}, {"pool": "max"}, {"fc_norm": "no"}, {"classes": None}):
        lie = header | {"classifier": header["classifier"] | change}
        save_file(load_file(file), other, {"efficient_mae": json.dumps(lie)})
        refused("lie.safetensors: ", weights=other)
