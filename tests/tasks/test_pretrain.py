import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import efficient_mae as emae
from efficient_mae.data import open_source, spread
from efficient_mae.engine.machine import cuda_graphs
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.storage import checkpoint as checkpoint_module
from efficient_mae.engine.storage import durable
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.errors import InputError
from efficient_mae.methods.mae import MaskedAutoencoder
from efficient_mae.tasks.pretrain import make_pretrain_run, pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig, resolve

from .conftest import TINY, write_images


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    small = {**TINY, "num_workers": 0, "epochs": 2, "batch_size": 8, "log_every": 2}
    return PretrainConfig(data=str(data), out=str(out), **(small | settings))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    return pretrain(config(images, out, epochs=12, base_lr=0.03, gamma=0.6))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def settings_of(run: Path) -> dict:
    settings = read_settings(run).settings
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def test_it_learns(run: Path):
    losses = [row["loss"] for row in rows(run)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_run_directory(run: Path):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "figures", "encoder.safetensors", "machine.json"
    }  # fmt: skip
    assert not any(path.name.startswith(".partial") for path in run.rglob("*"))
    assert {*rows(run)[0]} == {"step", "epoch", "loss", "lr", "grad_norm", "images_per_second", "data_wait"}
    assert [row["step"] for row in rows(run)] == [1, *range(2, 61, 2)]
    with Image.open(next((run / "figures").glob("panel-*.png"))) as panel:
        assert panel.width > 300


def test_tensorboard_holds_the_metrics(run: Path):
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("loss")]
    assert written == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows(run)]


def test_its_config_repeats_the_run(run: Path, tmp_path: Path):
    settings = settings_of(run)
    again = pretrain(PretrainConfig(**settings | {"out": str(tmp_path / "b")}))
    assert (again / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def test_workers_change_nothing(run: Path, tmp_path: Path):
    settings = settings_of(run)
    again = pretrain(PretrainConfig(**settings | {"out": str(tmp_path / "b"), "num_workers": 2}))
    assert (again / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def test_a_finished_run_says_so_and_stays(run: Path, capsys: pytest.CaptureFixture[str]):
    settings = settings_of(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    pretrain(PretrainConfig(**settings))
    assert "is finished: 60 steps" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


def test_training_may_end_within_an_epoch(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """2.4 epochs of 43 images in batches of 8 are 12 steps, wherever it was interrupted."""
    settings = {"epochs": 2.4, "warmup_epochs": 0.4, "base_lr": 0.032, "checkpoint_every": 7, "panel_every": 2}
    alone = pretrain(config(images, tmp_path / "alone", **settings))
    last = rows(alone)[-1]
    assert (last["step"], last["epoch"]) == (12, 2.4)
    rates = {row["step"]: row["lr"] for row in rows(alone)}
    # 2 steps of warm-up to 0.032 * 8 / 256, then half a cosine of 10, of which the last step has 9 behind it.
    assert rates[12] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 9 / 10)) / 2)
    assert sorted(path.name for path in (alone / "figures").glob("panel-*")) == [
        "panel-epoch-0002.png", "panel-epoch-02.4.png"
    ]  # fmt: skip
    assert read_settings(alone).settings["epochs"] == 2.4
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_at_checkpoint(patch, 2)
        pretrain(config(images, tmp_path / "stopped", **settings))
    again = pretrain(config(images, tmp_path / "stopped", **settings))
    assert (again / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()


def test_less_than_a_step_is_no_training(images: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"epochs=0\.05: is less than a step; an epoch has 5"):
        pretrain(config(images, tmp_path / "run", epochs=0.05))
    assert not (tmp_path / "run").exists()


def test_a_directory_of_another_configuration(run: Path):
    settings = settings_of(run)
    with pytest.raises(ValueError, match=r"another configuration: gamma 0.6 there, 0.5 here; seed 0 there, 3 here"):
        pretrain(PretrainConfig(**settings | {"gamma": 0.5, "seed": 3}))


def test_a_directory_in_which_no_step_was_made_is_anybodys(images: Path, tmp_path: Path, monkeypatch):
    """As after memory ran out in the first, and the advice was taken to make batches smaller."""
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        patch.setattr(MaskedAutoencoder, "forward", full)
        with pytest.raises(Exception, match="memory"):
            pretrain(config(images, tmp_path / "run", batch_size=16))
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert pretrain(config(images, tmp_path / "run", batch_size=8)) == tmp_path / "run"
    with pytest.raises(ValueError, match="another configuration: batch_size 8 there, 16 here"):
        pretrain(config(images, tmp_path / "run", batch_size=16))


def test_a_directory_of_something_else(images: Path, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ValueError, match="neither empty nor a run directory"):
        pretrain(config(images, tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        pretrain(config(images, tmp_path / "letter.txt"))


def test_data_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_images(tmp_path / "data", 16)
    settings = config(data, tmp_path / "run", epochs=4, checkpoint_every=3)
    stop_at_checkpoint(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        pretrain(settings)
    monkeypatch.undo()
    write_images(data, 17)
    with pytest.raises(ValueError, match="has 17 images now and had 16"):
        pretrain(settings)


def stop_at_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Break off while the given checkpoint is being written."""
    written = []
    save_tensors = checkpoint_module.save_tensors

    def stopping(file: Path, *arguments):
        if file.name == "optimizer.safetensors":
            written.append(file)
            if len(written) == number:
                raise InterruptedError
        save_tensors(file, *arguments)

    monkeypatch.setattr(checkpoint_module, "save_tensors", stopping)


def test_a_full_disk_leaves_a_run_that_resumes(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = config(images, tmp_path / "run", checkpoint_every=3)
    save_file = durable.save_file

    def full(tensors, file, metadata):
        if "step-00000006" in str(file):
            raise OSError(28, "No space left on device", str(file))
        save_file(tensors, file, metadata)

    monkeypatch.setattr(durable, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(settings)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    resumed = pretrain(settings)
    expected = pretrain(dataclasses.replace(settings, out=str(tmp_path / "alone")))
    assert (resumed / "encoder.safetensors").read_bytes() == (expected / "encoder.safetensors").read_bytes()


def test_a_run_says_what_is_made_of_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_images(tmp_path / "data", 9, size=(8, 8))
    pretrain(config(data, tmp_path / "run", in_chans=3, epochs=1))
    said = (
        "images of 8 x 8, grey and RGB, are enlarged 2.0 times to 16 x 16 and made RGB where they are grey; "
        "crops of 20% to 100% of their area are brought to that size"
    )
    assert capsys.readouterr().err.splitlines().count(said) == 1


def test_damaged_images_are_skipped_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_images(tmp_path / "data", 200)
    (data / "007.jpg").write_text("not a picture")
    Image.new("L", (3, 40)).save(data / "009.png")
    pretrain(config(data, tmp_path / "run"))
    spoken = capsys.readouterr().err
    assert "2 of 200 images could not be read" in spoken
    assert "skipped" in spoken and "007.jpg" in spoken and "009.png" in spoken
    named = dict(json.loads((tmp_path / "run" / "damaged.json").read_text()))
    assert sorted(Path(name).name for name in named) == ["007.jpg", "009.png"]


def test_too_many_damaged_images_stop_the_run(tmp_path: Path):
    data = write_images(tmp_path / "data", 200)
    for number in (1, 2, 4):
        next(data.glob(f"{number:03}.*")).write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 200 images cannot be read, more than 1%"):
        pretrain(config(data, tmp_path / "run"))


@pytest.mark.parametrize("unreadable", ["text", "small"])
def test_no_readable_image_is_refused_before_anything_is_written(tmp_path: Path, unreadable: str):
    data = write_images(tmp_path / "data", 9, size=(3, 30))
    if unreadable == "text":
        for file in data.iterdir():
            file.write_text("not a picture")
    with pytest.raises(ValueError, match="no readable image among 9 of 9 looked at"):
        pretrain(config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"batch_size": 64}, "batch_size=64: must be at least 1 and at most the 43 images"),
        ({"batch_size": 8, "accum_iter": 3}, "accum_iter=3 x 1 processes; take batch_size 6 or 9, or accum_iter 2"),
        ({"parallel": "tp"}, "parallel='tp': must be one of ddp, fsdp"),
        ({"epochs": 0}, "epochs=0: must be greater than 0"),
        ({"min_lr": 1e-5}, "min_lr=1e-05: must be at most 4.6875e-06, the rate of base_lr=0.00015 at batch_size=8"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0: must be greater than 0 and less than 1"),
        ({"warmup_epochs": 5.0}, "warmup_epochs=5.0: must lie between 0 and epochs=2"),
        ({"model": "mae_vit_tiny_patch5"}, "patch_size=5 does not divide img_size=16x16"),
        ({"model": "vit"}, "unknown model 'vit'"),
        ({"mask_ratio": 0.99}, "leaves none of 16 patches visible"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"device": "cuda:9"}, "device='cuda:9'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"mean": (0.5, 0.5)}, r"mean=\[0.5, 0.5\]: in_chans=1"),
        ({"in_chans": 7}, "in_chans=7"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"out": "/proc/nothing"}, "out=/proc/nothing: cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path, settings: dict, what: str
):
    with pytest.raises(ValueError, match=what):
        pretrain(dataclasses.replace(config(images, tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()


def test_how_the_optimiser_averages_and_where_its_rate_ends(images: Path, tmp_path: Path):
    settings = config(images, tmp_path / "run", betas=(0.8, 0.99), min_lr=4e-6, base_lr=0.0128, warmup_epochs=0.4)
    run = make_pretrain_run(settings, ALONE)
    assert run.build_optimizer().defaults["betas"] == (0.8, 0.99)
    run.execute()
    # Of ten steps two warm up; the last is at seven eighths of the cosine.
    rates = {row["step"]: row["lr"] for row in rows(run.out)}
    assert rates[1] == 2e-4 and rates[10] == pytest.approx(4e-6 + 3.96e-4 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_defaults_that_depend_on_the_data():
    base = PretrainConfig(data="x", out="y", epochs=200)
    cpu = torch.device("cpu")
    source = open_source("fashion-mnist-sample")
    assert (resolve(base, source, cpu).batch_size, resolve(base, source, cpu).warmup_epochs) == (256, 40)
    small = resolve(dataclasses.replace(base, epochs=1), spread(source, 12), cpu)
    assert (small.batch_size, small.warmup_epochs) == (8, 0.2)
    assert small.mean == pytest.approx((0.485, 0.456, 0.406))


def test_the_encoder_alone_is_the_autoencoders(run: Path):
    whole, encoder = emae.load(run), emae.load(run / "encoder.safetensors")
    assert set(load_file(run / "encoder.safetensors")) == set(encoder.state_dict())
    pictures = torch.randn(2, 1, 16, 16)
    assert torch.equal(whole.backbone.forward_features(pictures), encoder.forward_features(pictures))


def test_rectangles_and_repeats(images: Path, tmp_path: Path):
    run = pretrain(config(images, tmp_path / "run", img_size=(16, 24), in_chans=3, epochs=1, grad_checkpointing=True))
    assert emae.load(run).config.img_size == (16, 24)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(images: Path, tmp_path: Path):
    plain = pretrain(config(images, tmp_path / "plain", depth=2, decoder_depth=2))
    compiled = pretrain(config(images, tmp_path / "compiled", depth=2, decoder_depth=2, compile=True))
    losses = [[row["loss"] for row in rows(run)] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_repeats(images: Path, tmp_path: Path):
    """Processes that read change nothing; an epoch is as long as without repeats."""
    alone = pretrain(config(images, tmp_path / "a", repeats=4))
    worked = pretrain(config(images, tmp_path / "b", repeats=4, num_workers=2))
    assert [row["step"] for row in rows(alone)][-1] == 10
    assert (alone / "encoder.safetensors").read_bytes() == (worked / "encoder.safetensors").read_bytes()
    plain = pretrain(config(images, tmp_path / "c"))
    assert (alone / "encoder.safetensors").read_bytes() != (plain / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 3}, "repeats=3: must be at least 1 and divide the 8 images of a micro-batch"),
        ({"repeats": 4, "accum_iter": 4}, "repeats=4: must be at least 1 and divide the 2 images"),
        ({"repeats": 0}, "repeats=0: must be at least 1"),
        ({"cuda_graphs": True, "device": "cpu"}, "cuda_graphs=true: needs a GPU, one process"),
        ({"compile": "always"}, "compile='always': must be true, false or auto"),
        ({"decode_device": "gpu"}, "decode_device='gpu': must be cpu or cuda"),
        ({"decode_device": "cuda", "device": "cpu"}, "decode_device=cuda: the run computes on cpu"),
    ],
)
def test_how_images_are_read_that_cannot_be(images: Path, tmp_path: Path, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        pretrain(config(images, tmp_path / "a", **settings))
    assert not (tmp_path / "a").exists()


@pytest.mark.gpu
def test_decoding_on_the_gpu_is_repeatable(images: Path, tmp_path: Path):
    settings = {"device": "cuda", "decode_device": "cuda", "repeats": 2, "num_workers": 2, "compile": False}
    first = pretrain(config(images, tmp_path / "a", **settings))
    again = pretrain(config(images, tmp_path / "b", **settings))
    assert [row["loss"] for row in rows(first)] == [row["loss"] for row in rows(again)]


@pytest.mark.gpu
def test_a_cuda_graph_changes_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"device": "cuda", "compile": False, "epochs": 2}
    captured = []
    make = cuda_graphs._Graph.__init__

    def noted(self: object, function: object, x: torch.Tensor, *others: object) -> None:
        captured.append((len(x), others[-1]))
        make(self, function, x, *others)

    monkeypatch.setattr(cuda_graphs._Graph, "__init__", noted)
    plain = pretrain(config(images, tmp_path / "a", cuda_graphs=False, **settings))
    graphed = pretrain(config(images, tmp_path / "b", **settings))
    assert [row["loss"] for row in rows(graphed)] == [row["loss"] for row in rows(plain)]
    assert captured == [(8, False)]
    assert (graphed / "encoder.safetensors").read_bytes() == (plain / "encoder.safetensors").read_bytes()
