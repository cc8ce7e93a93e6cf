"""Fine-tuning with a sharded model, its average beside it, is fine-tuning."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.interop.classifiers import load_classifier
from efficient_mae.methods import backbone_of
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from tests.processes import spawn

from ..labelled import QUICK, SMALL_ENCODER, write_labelled

# Nothing random within a step: so the number of processes changes nothing.
SETTINGS = {
    "auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0, "epochs": 2,
    "base_lr": 0.01, "layer_decay": 0.8, "batch_size": 24, "ema_decay": 0.5, "clip_grad": 1.0, "precision": "fp32",
}  # fmt: skip


def in_process(rank: int, jobs: list[FinetuneConfig]) -> None:
    for settings in jobs:
        finetune(settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    alone = FinetuneConfig(data=str(data), out=str(folder / "alone"), **{**SMALL_ENCODER, **QUICK, **SETTINGS})
    finetune(alone)
    sharded = dataclasses.replace(alone, out=str(folder / "sharded"), parallel="fsdp", accum_iter=2)
    random = dataclasses.replace(
        sharded, out=str(folder / "random"), mixup=0.8, drop_path=0.2, grad_checkpointing=True
    )
    spawn(2, in_process, [sharded, random])
    return folder


def test_the_average_of_a_sharded_model_is_judged_and_saved(runs: Path):
    expected, found = (load_file(runs / name / "classifier.safetensors") for name in ("alone", "sharded"))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    results = [json.loads((runs / name / "results.json").read_text()) for name in ("alone", "sharded")]
    assert results[0]["confusion"] == results[1]["confusion"] and results[0]["test_images"] == 36


def test_the_average_has_its_own_shards(runs: Path):
    checkpoint = max((runs / "sharded" / "checkpoints").iterdir())
    assert {path.name for path in checkpoint.iterdir()} == {
        "model", "ema", "optimizer", "state.json", "checksums.json"
    }  # fmt: skip


def test_shards_of_a_classifier_are_weights(runs: Path):
    checkpoint = max((runs / "sharded" / "checkpoints").iterdir())
    assert (checkpoint / "model").is_dir()
    classifier, encoder = load_classifier(checkpoint), backbone_of(emae.load(checkpoint))
    whole, alone = classifier.vit.state_dict(), encoder.state_dict()
    assert len(whole) == len(alone) + 2
    for name, value in alone.items():
        torch.testing.assert_close(value, whole[name if name in whole else name.replace("norm.", "fc_norm.")])


def test_what_is_random_and_recomputed_works_sharded(runs: Path):
    assert 0 <= json.loads((runs / "random" / "results.json").read_text())["top1"] <= 1


def test_a_head_alone_is_not_sharded(data: Path, tmp_path: Path):
    refused = LinearProbeConfig(data=str(data), out=str(tmp_path / "run"), parallel="fsdp", **SMALL_ENCODER, **QUICK)
    with pytest.raises(ValueError, match="parallel='fsdp': .* take ddp"):
        linear_probe(refused)
    assert not (tmp_path / "run").exists()
