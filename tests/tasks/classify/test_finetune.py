import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy

import efficient_mae as emae
from efficient_mae.backbones import VisionTransformer
from efficient_mae.cli import main
from efficient_mae.data import AugmentTransform, Reading, normalize, open_source, sample_rng
from efficient_mae.data.batches.order import ResumableBatchSampler
from efficient_mae.engine.loop import step_generators
from efficient_mae.engine.optim import adamw, set_learning_rate
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.tasks.classify import finetune as finetune_module
from efficient_mae.tasks.classify.finetune import FinetuneConfig, build_classifier, finetune
from efficient_mae.tasks.classify.result import SeedsResult
from efficient_mae.tasks.downstream import layer_decay_groups

from ..labelled import QUICK, SMALL_ENCODER, stop_after_checkpoints, write_labelled


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


def config(data: Path, out: Path, **settings) -> FinetuneConfig:
    return FinetuneConfig(data=str(data), out=str(out), **({**SMALL_ENCODER, **QUICK, "epochs": 2} | settings))


PLAIN = {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0}


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SeedsResult, Path]:
    out = tmp_path_factory.mktemp("runs") / "learned"
    settings = {**PLAIN, "epochs": 5, "base_lr": 0.01, "layer_decay": 1.0, "eval_every": 2, "seeds": 2}
    return finetune(config(data, out, **settings)), out


def test_it_learns_and_says_how_well(learned: tuple[SeedsResult, Path]):
    summary, out = learned
    assert summary.top1.mean > 0.9 and summary.seeds == [0, 1] and summary.top5 is None
    assert summary.top1.low <= summary.top1.mean <= summary.top1.high
    written = json.loads((out / "results.json").read_text())
    assert written | {"run": str(out)} == summary.plain() and "top5" not in written
    for seed in (0, 1):
        run = out / f"seed-{seed}"
        result = json.loads((run / "results.json").read_text())
        assert result["top1"] == summary.top1.values[seed] and result["seed"] == seed
        assert result["classes"] == ["blob", "stripes", "void"] and result["test_images"] == 36
        assert np.trace(result["confusion"]) / 36 == pytest.approx(result["top1"], abs=1e-6)
        assert result["per_class"] == pytest.approx([result["confusion"][k][k] / 12 for k in range(3)], abs=1e-6)
        assert (run / "confusion.png").stat().st_size > 5000
        assert [row["epoch"] for row in rows(run) if "top1" in row] == [2, 4, 5]
        assert rows(run)[-1]["top1"] == result["top1"]


def test_what_is_exported_loads_into_timm(learned: tuple[SeedsResult, Path], data: Path):
    run = learned[1] / "seed-0"
    vit = timm_vit.VisionTransformer(16, 4, 1, num_classes=3, global_pool="avg", embed_dim=192, depth=1, num_heads=3)
    vit.load_state_dict(load_file(run / "classifier.safetensors"))
    test = open_source(str(data), "test")
    images = torch.stack([torch.from_numpy(np.array(test.image(i)))[None] for i in range(len(test))])
    with torch.no_grad():
        predicted = vit.eval()(normalize(images, (0.5,), (0.5,))).argmax(dim=1)
    right = np.mean([predicted[i] == test.label(i) for i in range(len(test))])
    assert right == pytest.approx(json.loads((run / "results.json").read_text())["top1"], abs=1e-6)


def test_a_finished_run_of_several_seeds_stays(learned: tuple[SeedsResult, Path], data: Path):
    summary, out = learned
    settings = {**PLAIN, "epochs": 5, "base_lr": 0.01, "layer_decay": 1.0, "eval_every": 2, "seeds": 2}
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert finetune(config(data, out, **settings)) == summary
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}


def test_interrupted_and_resumed_is_bit_identical(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Mixup, cutmix, random erasing, RandAugment, drop path and an average of the weights; in two micro-batches.
    settings = {"checkpoint_every": 3, "accum_iter": 2, "depth": 2, "drop_path": 0.5, "ema_decay": 0.9, "epochs": 2}
    alone, cut = config(data, tmp_path / "alone", **settings), config(data, tmp_path / "cut", **settings)
    finetune(alone)
    stop_after_checkpoints(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        finetune(cut)
    monkeypatch.undo()
    torch.rand(3), random.random()  # whatever else has drawn numbers meanwhile makes no difference
    finetune(cut)
    files = sorted(file.relative_to(alone.out) for file in Path(alone.out).rglob("*.safetensors"))
    assert {"ema.safetensors", "classifier.safetensors", "optimizer.safetensors"} <= {file.name for file in files}
    for file in files:
        assert (Path(alone.out) / file).read_bytes() == (Path(cut.out) / file).read_bytes(), file
    timings = {"images_per_second", "data_wait"}
    kept = [
        [{k: v for k, v in row.items() if k not in timings} for row in rows(Path(one.out))] for one in (alone, cut)
    ]
    assert kept[0] == kept[1]
    last = max(Path(alone.out, "checkpoints").iterdir())
    ema, model = load_file(last / "ema.safetensors"), load_file(last / "model.safetensors")
    exported = load_file(Path(alone.out) / "classifier.safetensors")
    assert not torch.equal(ema["head.weight"], model["head.weight"])
    assert all(torch.equal(exported[name], ema[name]) for name in ema)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_first_step_is_that_of_timms_own_vit(
    data: Path, tmp_path: Path, smoothing: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(finetune_module, "HEAD_STD", 0.5)  # else every loss is log(3), whatever the encoder does
    torch.manual_seed(3)
    encoder = emae.create_model("mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=2, decoder_depth=1).backbone
    save_encoder(tmp_path / "encoder.safetensors", encoder, ImageStatistics((0.4,), (0.3,)))
    settings = config(
        data, tmp_path / "run", weights=str(tmp_path / "encoder.safetensors"), label_smoothing=smoothing,
        from_scratch=False, model=None, depth=None, drop_path=0.0, random_erasing=0.0, log_every=1, epochs=1,
    )  # fmt: skip
    finetune(settings)

    loaded = emae.load(tmp_path / "encoder.safetensors")
    torch.manual_seed(0)
    vit = build_classifier(loaded, 3)
    own = timm_vit.VisionTransformer(16, 4, 1, num_classes=3, global_pool="avg", embed_dim=192, depth=2, num_heads=3)
    own.load_state_dict(vit.state_dict())
    source = open_source(str(data), "train")
    transform = AugmentTransform((16, 16), Reading(1), scale=(0.5, 1.0), auto_augment="rand-m9-mstd0.5-inc1")
    pairs = next(iter(ResumableBatchSampler(len(source), 16, seed=0)))
    images = torch.stack([transform(source.image(i), sample_rng(0, epoch, i, "crop")) for epoch, i in pairs])
    labels = torch.tensor([source.label(i) for _, i in pairs])
    with step_generators(seed=0, index=0, rank=0):
        mixed, targets = Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=3)(
            normalize(images, (0.4,), (0.3,)), labels
        )
    timms = SoftTargetCrossEntropy()(own(mixed), targets).item()
    tokens = encoder.forward_features(mixed)  # ours, but for the norm, which now follows the mean
    hook = encoder.norm.register_forward_pre_hook(lambda _, given: tokens.set_(given[0]))
    encoder.forward_features(mixed)
    hook.remove()
    ours = F.cross_entropy(vit.head(vit.fc_norm(tokens[:, 1:].mean(dim=1))), targets).item()
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(timms, rel=1e-5)
    assert ours == pytest.approx(timms, rel=1e-5)


def test_layer_decay():
    model = build_classifier(VisionTransformer(32, 8, embed_dim=192, depth=3, num_heads=3), 5)
    optimizer = adamw(layer_decay_groups(model, weight_decay=0.05, layer_decay=0.5), (0.9, 0.999))
    set_learning_rate(optimizer, 2.0)
    group = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: (group[p]["lr"], group[p]["weight_decay"]) for name, p in model.named_parameters()}
    # BEiT's rule: the embeddings are layer 0, the blocks 1 to 3, the head 4; each at half the rate of the next.
    assert found["head.weight"] == (2.0, 0.05) and found["fc_norm.weight"] == (2.0, 0.0)
    assert found["blocks.2.mlp.fc1.weight"] == (1.0, 0.05) and found["blocks.2.mlp.fc1.bias"] == (1.0, 0.0)
    assert found["blocks.0.attn.qkv.weight"] == (0.25, 0.05)
    assert found["patch_embed.proj.weight"] == (0.125, 0.05)
    assert found["cls_token"] == found["pos_embed"] == (0.125, 0.0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"from_scratch": False, "model": None, "depth": None}, "either --weights PATH or --from scratch"),
        ({"weights": "x"}, "either --weights PATH or --from scratch"),
        ({"weights": "x", "from_scratch": False}, "model=mae_vit_tiny_patch4: only with --from scratch"),
        ({"weights": "/nowhere", "from_scratch": False, "model": None, "depth": None}, "/nowhere: no such file"),
        ({"batch_size": 6, "accum_iter": 2}, "mixup pairs images, but a micro-batch has 3"),
        ({"auto_augment": "augmix"}, "auto_augment='augmix': must be a RandAugment"),
        ({"in_chans": 4}, "works on 8 bits of 1 or 3 channels, not 4"),
        ({"drop_path": 1.5}, "drop_path=1.5: must be at least 0 and at most 0.99"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"val_data": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, settings: dict, what: str
):
    with pytest.raises(ValueError, match=what):
        finetune(dataclasses.replace(config(data, tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()


def test_a_directory_of_one_seed_is_not_one_of_several(learned: tuple[SeedsResult, Path], data: Path):
    run = learned[1] / "seed-0"
    with pytest.raises(ValueError, match="holds checkpoints, which is no run of several seeds"):
        finetune(config(data, run, seeds=2))


def test_from_scratch_on_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--data", str(data), "--out", str(tmp_path / "run"), "--model", "mae_vit_tiny_patch8", "--depth", "1"]
    small = ["--img_size", "16", "--in_chans", "1", "--batch_size", "32", "--epochs", "1", "--num_workers", "0"]
    assert main(["finetune", "--from", "scratch", *given, *small, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["train_images"] == 120
    assert len([line for line in err.splitlines() if line.startswith("images of ")]) == 1
    assert main(["finetune", "--from", "memory", *given]) == 2
    assert "from='memory': only --from scratch" in capsys.readouterr().err
