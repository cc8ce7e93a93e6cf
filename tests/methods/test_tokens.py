"""What learns visual tokens is a guest like any other; its tokenizer is none of its weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers.drop import DropPath
from torch import Tensor

import efficient_mae as emae
from efficient_mae.bench import peaks
from efficient_mae.cli import main
from efficient_mae.interop import load_config
from efficient_mae.methods.tokenizer import load_tokenizer
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.methods.tokenizers import write_tokenizer
from tests.processes import imported, spawn
from tests.tasks.conftest import flags, result_of, rows
from tests.tasks.labelled import stop_after_checkpoints, write_labelled

MODELS = {"beit": "beit_vit_tiny_patch4", "cae": "cae_vit_tiny_patch4"}
SIZE = {"img_size": 16, "in_chans": 1, "depth": 2}
RUN = {**SIZE, "precision": "fp32", "device": "cpu", "num_workers": 0, "batch_size": 16, "epochs": 4,
       "base_lr": 1e-2, "warmup_epochs": 1, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 9}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("tokens") / "data")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest, data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tokens") / request.param
    chosen = {"model": MODELS[request.param], "tokenizer": tokenizer}
    assert main(["pretrain", *flags(data=data, out=out, **chosen, **RUN)]) == 0
    return out


@pytest.fixture
def settings(run: Path, tokenizer: Path) -> dict:
    return {"model": MODELS[run.name], "tokenizer": tokenizer, **RUN}


def test_it_learns_tokens_of_a_tokenizer_that_it_does_not_keep(run: Path, tokenizer: Path):
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    config, saved = load_config(run), load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")
    words = load_tokenizer(tokenizer)
    assert config.tokenizer_digest == words.digest and config.vocab_size == words.vocab_size
    assert saved.keys() == emae.load(run).state_dict().keys()
    assert not any("tokenizer" in name or "words" in name for name in saved)


def test_killed_it_resumes_to_the_same_bits(
    run: Path, data: Path, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Drop path and all; the tokenizer may be elsewhere by then."""
    moved = shutil.copy(settings["tokenizer"], tmp_path / "moved.safetensors")
    command = ["pretrain", *flags(data=data, out=tmp_path / "run", **settings)]
    with monkeypatch.context() as patch:
        stop_after_checkpoints(patch, 3)
        assert main(command) == 1
    assert main(["pretrain", *flags(data=data, out=tmp_path / "run", **settings | {"tokenizer": moved})]) == 0
    assert rows(tmp_path / "run") == rows(run)


def test_another_tokenizer_is_another_run(
    run: Path, data: Path, settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = write_tokenizer(tmp_path, seed=1)
    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished)
    (unfinished / "encoder.safetensors").unlink()
    assert main(["pretrain", *flags(data=data, out=unfinished, **settings | {"tokenizer": other})]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"emae: out={unfinished} holds a run of another model: tokenizer_digest '"), said


def test_what_cannot_work_is_one_line(
    run: Path, data: Path, settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(**changed) -> str:
        given = {name: value for name, value in (settings | changed).items() if value is not None}
        assert main(["pretrain", *flags(data=data, out=tmp_path / "run", **given)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "run").exists()
        return line

    capsys.readouterr()
    assert "tokenizer=null" in refused(tokenizer=None) and "emae tokenizer" in refused(tokenizer=None)
    assert "nothing.safetensors" in refused(tokenizer=tmp_path / "nothing.safetensors")
    assert "of 1 channels, and in_chans=3" in refused(in_chans=3)
    assert "smallest_block=17" in refused(smallest_block=17)
    assert "mask_ratio=0.01 hides none of 16 patches" in refused(mask_ratio=0.01)
    assert "drop_path=1.0: must be" in refused(drop_path=1.0)


def test_a_step_of_several_processes_is_not_replayed_by_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Drop path is drawn by each process for itself."""
    shutil.copytree(run, tmp_path / "run")
    row = {"step": 3, "world_size": 2, "accum_iter": 1, "rollbacks": 0, "loss": "nan", "grad_norm": "nan"}
    (tmp_path / "run" / "skipped.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["replay", "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 processes: step 3 was done by 2, so start torchrun --nproc_per_node 2" in said


def in_process(rank: int, configs: tuple[PretrainConfig, ...]) -> None:
    for config in configs:
        pretrain(config)


def test_cut_into_micro_batches_or_processes_it_is_the_same_run(
    run: Path, data: Path, settings: dict, tmp_path: Path
):
    """Without drop path, which every process draws for itself."""
    size = {"img_size": 16, "drop_path": 0.0, "clip_grad": 1.0, "epochs": 1, "data": str(data)}
    given = {**settings, **size, "tokenizer": str(settings["tokenizer"])}
    alone, *others = (
        PretrainConfig(**given, out=str(tmp_path / name), accum_iter=accum, parallel=parallel)
        for name, accum, parallel in (("1", 1, "ddp"), ("2", 4, "ddp"), ("ddp", 1, "ddp"), ("fsdp", 2, "fsdp"))
    )
    pretrain(alone)
    pretrain(others[0])
    spawn(2, in_process, tuple(others[1:]))
    expected = emae.load(tmp_path / "1").state_dict()
    for other in others:
        assert [row["loss"] for row in rows(Path(other.out))] == pytest.approx(
            [row["loss"] for row in rows(tmp_path / "1")], rel=1e-4
        )
        for name, value in emae.load(other.out).state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=f"{other.out}: {name}")


def resized(pixels: Tensor, side: int) -> Tensor:
    """By Pillow, in float32."""
    pictures = (Image.fromarray(one.numpy()).resize((side, side), Image.Resampling.BICUBIC) for one in pixels[:, 0])
    return torch.stack([torch.from_numpy(np.asarray(picture)) for picture in pictures])[:, None].clamp(0, 1)


@pytest.mark.parametrize("name", MODELS.values())
def test_it_learns_and_draws_the_words_of_the_pixels_themselves(name: str, tokenizer: Path):
    """Not of normalised ones; a patch of 4 x 4 pixels is seen as the tokenizer's 2 x 2."""
    model, words = emae.create_model(name, tokenizer=str(tokenizer), **SIZE).eval(), load_tokenizer(tokenizer)
    mean, std = model.config.mean[0], model.config.std[0]
    pixels = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    images = (pixels - mean) / std
    with torch.no_grad():
        out = model(images, model.plan(3, generator=torch.Generator().manual_seed(0)))
    ids, patches = words.encode(resized(pixels, 8)), out.mask[:, None]
    assert len(ids.unique()) > 3 and torch.equal(out.target, ids[out.mask])
    ids[out.mask] = out.logits.argmax(dim=1)
    hidden = patches.repeat_interleave(4, 2).repeat_interleave(4, 3)
    drawn = (resized(words.decode(ids), 16) - mean) / std
    torch.testing.assert_close(model.paint(images, out), torch.where(hidden, drawn, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "behind"), [("beit", ()), ("cae", ("regressor_blocks", "decoder_blocks"))])
def test_later_blocks_are_skipped_more_often(method: str, behind: tuple[str, ...]):
    model = emae.create_model(MODELS[method], img_size=16, depth=3, drop_path=0.2)
    found: dict[str, set[float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, DropPath) and module.drop_prob:
            found.setdefault(name.partition(".")[0], set()).add(round(module.drop_prob, 3))
    four_blocks = {0.067, 0.133, 0.2}
    assert found == {"backbone": {0.1, 0.2}} | dict.fromkeys(behind, four_blocks)


def test_it_is_drawn_and_reported(run: Path, data: Path, tmp_path: Path):
    picture = next((data / "val" / "blob").iterdir())
    assert main(["reconstruct", *flags(weights=run, image=picture, out=tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert list((run / "figures").glob("panel-*.png"))
    page = (run / "report.html").read_text()
    assert "Loss" in page and "Multiply-accumulates" in page


def test_it_is_exported_and_judged(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result_of(capsys, "export", *flags(weights=run, out=tmp_path / "timm", format="timm"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    whole, images = emae.load(run), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(images), whole.backbone.forward_features(images))
    judged = result_of(capsys, "knn", *flags(weights=run, data=data, device="cpu", k=5, num_workers=0))
    assert judged["accuracy"]["trained"] > 0.5
    quick = {"data": data, "epochs": 4, "batch_size": 24, "warmup_epochs": 1, "num_workers": 0, "device": "cpu",
             "precision": "fp32", "crop_scale": [0.5, 1.0]}  # fmt: skip
    tuned = result_of(
        capsys, "finetune", *flags(weights=run, out=tmp_path / "tuned", base_lr=5e-3, auto_augment="null", **quick)
    )
    # timm's Beit has no head for a mean of what is normalised already; a ViT's has.
    refused = whole.backbone.family == "beit"
    probe = ["linear-probe", *flags(weights=run, out=tmp_path / "probed", base_lr=200.0, **quick)]
    if refused:
        assert main([*probe, "--pool", "avg"]) == 2 and "normalises after a mean" in capsys.readouterr().err
    probed = result_of(capsys, *probe, "--pool", "token" if refused else "avg")
    assert tuned["top1"] > 0.5 and probed["top1"] > (0.4 if refused else 0.5)


def test_it_is_timed_and_counted(
    run: Path, settings: dict, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peaks, "multiprocessing", SimpleNamespace(get_context=lambda _: imported()))
    method = run.name
    small = {"model": settings["model"], "tokenizer": settings["tokenizer"], **SIZE, "device": "cpu",
             "precision": "fp32", "rounds": 1, "batch_size": 4, "memory": True}  # fmt: skip
    timed = result_of(capsys, "bench", "step", *flags(**small))
    (row,) = timed["methods"]
    assert row["name"] == method and row["images_per_second"] > 0 and row["gmacs"] > 0
    assert row["peak_gigabytes"] > 0
    (row,) = result_of(capsys, "bench", "flops", "--model", settings["model"], "--masks", "2")["rows"]
    assert row["computed"] > 0
