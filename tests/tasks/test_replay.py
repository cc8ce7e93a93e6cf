"""Runs that meet a batch that isn't finite: what they skip and write down, and what replay finds."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import normalize
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.storage.checkpoint import find_checkpoints, step_of
from efficient_mae.errors import DivergedError
from efficient_mae.methods.mae import config as mae_config
from efficient_mae.tasks import pretrain
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.replay import ReplayConfig, replay
from tests.processes import spawn

from .labelled import QUICK, SMALL_ENCODER, write_labelled
from .white import (
    SCHEDULE,
    STEPS,
    bad,
    config,
    lines,
    replayed,
    steps_with,
    stopped_after,
    weights,
    white_is_infinite,
    whites_that_are_infinite,
    write_with_white,
)

# One step of each epoch sees it.
WHITE = 18
SKIPPED = steps_with({WHITE}, SCHEDULE["seed"])


@pytest.fixture(scope="module", autouse=True)
def poison() -> Iterator[None]:
    with whites_that_are_infinite():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_white(tmp_path_factory.mktemp("nonfinite") / "images", WHITE)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain.pretrain(config(data, tmp_path_factory.mktemp("runs") / "run", keep_checkpoints=1))


@pytest.fixture(scope="module")
def every_step(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, with every step's loss and weights."""
    every = {"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 99}
    return pretrain.pretrain(config(data, tmp_path_factory.mktemp("runs") / "every", **every))


def names_of_white(samples: list[dict]) -> list[str]:
    return [Path(sample["name"]).name for sample in samples if sample["index"] == WHITE]


def test_what_is_skipped_is_counted_and_written_down(run: Path, every_step: Path):
    assert list(SKIPPED) == [4, 10, 14, 18]
    rows = lines(run / "skipped.jsonl")
    assert {row["step"]: [(s["epoch"], s["index"]) for s in row["samples"]] for row in rows} == SKIPPED
    for row in rows:
        assert row["loss"] == row["grad_norm"] == "nan" and (row["seed"], row["ranks"]) == (25, [0])
        assert names_of_white(row["samples"]) == ["018.png"] and len({s["name"] for s in row["samples"]}) == 8
    losses = {row["step"]: row["loss"] for row in lines(every_step / "metrics.jsonl") if "loss" in row}
    assert losses.keys() == set(range(1, STEPS + 1)) - SKIPPED.keys()
    last = 0
    for row in lines(run / "metrics.jsonl"):
        window = range(last + 1, row["step"] + 1)
        taken = [losses[step] for step in window if step in losses]
        assert row.get("skipped_steps", 0) == len(window) - len(taken)
        assert row.get("loss") == (pytest.approx(sum(taken) / len(taken)) if taken else None)
        last = row["step"]
    assert last == STEPS and weights(run) == weights(every_step)


def test_killed_and_resumed_it_is_the_same(run: Path, data: Path, tmp_path: Path):
    settings = config(data, tmp_path / "run", keep_checkpoints=1)
    stopped_after(5, settings)
    written = tmp_path / "run" / "skipped.jsonl"
    before = lines(written)
    assert [row["step"] for row in before] == [4, 10]
    with written.open("a") as file:  # as if it had gone on, and was killed while it wrote
        file.write('{"step": 11, "lo')
    stopped_after(2, settings)
    with written.open("a") as file:
        file.write(json.dumps(before[-1] | {"step": 16}) + "\n")
    pretrain.pretrain(settings)
    assert weights(tmp_path / "run") == weights(run)
    assert lines(written) == lines(run / "skipped.jsonl")
    assert lines(tmp_path / "run" / "metrics.jsonl") == lines(run / "metrics.jsonl")


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("step", [None, 10])
def test_replay_finds_the_sample_the_module_and_the_gradients(
    run: Path, every_step: Path, data: Path, step: int | None, capsys: pytest.CaptureFixture[str]
):
    # The first skipped step's checkpoint stays, beside the last.
    assert [step_of(path) for path in find_checkpoints(run / "checkpoints")] == [2, STEPS]
    before = files(run)
    result = replayed(capsys, "--run", str(run), *([] if step is None else ["--step", str(step)]))
    step = step or 4
    assert (result["step"], result["checkpoint"], result["reproduced"]) == (step, 2, True)
    assert result["recorded"] == {"loss": result["loss"], "grad_norm": result["grad_norm"]}
    assert bad(result) == ["018.png"]
    assert result["module"] == {"name": "patch_embed", "kind": "PatchEmbed", "input_is_finite": False, "rank": 0}
    assert "patch_embed.proj.weight" in result["gradients"] and result["weights"] == []
    # The others' losses are, to the bit, those of the weights that a run which keeps them all had at that step.
    for sample, loss in zip(result["samples"], losses_at(every_step, data, step), strict=True):
        assert sample["index"] == WHITE or sample["loss"] == loss
    assert files(run) == before


def test_a_model_that_takes_images_in_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As real models do: then the errors of single patches have no gradient of their own."""
    monkeypatch.setitem(mae_config._PART_NUMBERS, "cpu", 1)
    out = tmp_path / "run"
    pretrain.pretrain(config(data, out, epochs=1))
    batch = pretrain.make_pretrain_run(config(data, out, epochs=1), ALONE).dataset().__getitems__(SKIPPED[4])
    assert len(batch.masks.value.parts) == 8
    result = replayed(capsys, "--run", str(out))
    assert bad(result) == ["018.png"] and result["reproduced"]
    assert "patch_embed.proj.weight" in result["gradients"] and "decoder_pred.weight" in result["gradients"]


def losses_at(run: Path, data: Path, step: int) -> list[float]:
    """Each sample's part of a step's loss."""
    batch = pretrain.make_pretrain_run(config(data, run), ALONE).dataset().__getitems__(SKIPPED[step])
    model = emae.load(run / "checkpoints" / f"step-{step - 1:08d}")
    with torch.no_grad():
        out = model(white_is_infinite(batch.images, (0.5,), (0.5,)), batch.masks.value)
    image = out.predicted.nonzero()[:, 0]
    parts = torch.zeros(8).index_add(0, image, out.weights * out.errors)
    return (parts / out.weights.sum()).tolist()


def test_a_run_of_a_version_that_wrote_no_task_and_had_fewer_settings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    lacking = ("task", "version", "hflip", "crop_scale")
    file.write_text(
        "".join(line for line in re.split(r"(?m)^(?=\w)", file.read_text()) if not line.startswith(lacking))
    )
    assert not any(name in file.read_text() for name in lacking)
    found, expected = (replayed(capsys, "--run", str(folder)) for folder in (tmp_path / "run", run))
    assert found | {"run": str(run)} == expected and bad(found) == ["018.png"]


def test_a_run_with_cuda_graphs_is_replayed_without(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They pass by the hooks that tell the module; and the machine at hand may have no GPU."""
    folder = shutil.copytree(run, tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    assert "cuda_graphs: auto" in text
    (folder / "config.yaml").write_text(text.replace("cuda_graphs: auto", "cuda_graphs: true"))
    found, expected = (replayed(capsys, "--run", str(one)) for one in (folder, run))
    assert found | {"run": str(run)} == expected and bad(found) == ["018.png"]


def test_it_is_told_to_a_person(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", "--run", str(run), "--step", "14"]) == 0
    out = capsys.readouterr().out
    for words in (
        "step 14 of",
        "not finite again",
        "first output that is not finite: patch_embed",
        "1 of 8",
        "and 31",
    ):
        assert words in out
    assert "018.png" in "".join(out.split())


def test_what_cannot_be_replayed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", "--run", str(run), "--step", "1"]) == 2
    assert f"step=1: not recorded as skipped in {run}; take 4, 10, 14, 18" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "skipped.jsonl").unlink()
    assert main(["replay", "--run", str(tmp_path / "run")]) == 2
    assert "none was skipped" in capsys.readouterr().err


def test_a_step_that_is_finite_this_time(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(pretrain, "normalize", normalize)
    result = replayed(capsys, "--run", str(run))
    assert result["reproduced"] is False and result["module"] is None and not result["gradients"] and not bad(result)
    assert result["loss"] == pytest.approx(sum(sample["loss"] for sample in result["samples"]), rel=1e-5)


@pytest.mark.parametrize("base_lr", [1e20, 1e45])
def test_weights_that_leave_the_numbers(data: Path, tmp_path: Path, base_lr: float):
    """At the smaller rate it is the losses that overflow, at the other the weights themselves."""
    settings = config(data, tmp_path, base_lr=base_lr, warmup_epochs=0, checkpoint_every=1, max_skipped_steps=3)
    with pytest.raises(
        DivergedError, match=r"3 steps in a row, from" if base_lr < 1e40 else r"after step 1 .* is not fin"
    ):
        pretrain.pretrain(settings)
    for checkpoint in find_checkpoints(tmp_path / "checkpoints"):
        for file in checkpoint.glob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert not (tmp_path / "encoder.safetensors").exists()


def in_process(rank: int, jobs: list[PretrainConfig | ReplayConfig], results) -> None:
    pretrain.normalize = white_is_infinite
    for number, job in enumerate(jobs):
        results[rank, number] = replay(job) if isinstance(job, ReplayConfig) else str(pretrain.pretrain(job))


def test_several_processes(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    jobs = [config(data, tmp_path / "run", accum_iter=2), ReplayConfig(run=str(tmp_path / "run"))]
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, in_process, jobs, shared)
        together = dict(shared)[0, 1].plain()
    rows = lines(tmp_path / "run" / "skipped.jsonl")
    # Micro-batches of two images go to the processes in turn.
    places = {step: [index for _, index in pairs].index(WHITE) // 2 for step, pairs in SKIPPED.items()}
    assert {row["step"]: row["ranks"] for row in rows} == {step: [place % 2] for step, place in places.items()}
    for row in rows:
        assert {(s["epoch"], s["index"]) for s in row["samples"]} == set(SKIPPED[row["step"]])
    one = lines(run / "metrics.jsonl")
    for ours, theirs in zip(lines(tmp_path / "run" / "metrics.jsonl"), one, strict=True):
        assert ours.keys() == theirs.keys() and ours == pytest.approx(theirs, rel=1e-4)
    alone = replayed(capsys, "--run", str(tmp_path / "run"))
    for result in (together, alone):
        assert result["reproduced"] and bad(result) == ["018.png"] and result["module"]["name"] == "patch_embed"
    by_index = [{s["index"]: s["loss"] for s in result["samples"]} for result in (together, alone)]
    del by_index[0][WHITE], by_index[1][WHITE]
    assert by_index[0] == pytest.approx(by_index[1], rel=1e-4)


@pytest.mark.parametrize("task", ["finetune", "linear-probe"])
def test_classifiers(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_labelled(tmp_path / "data", train=14, test=2)
    Image.new("L", (16, 16), 255).save(data / "train" / "void" / "white.png")
    settings = {
        **SMALL_ENCODER,
        **QUICK,
        "epochs": 2,
        "batch_size": 8,
        "data": str(data),
        "out": str(tmp_path / "run"),
    }
    if task == "finetune":
        plain = {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0}
        finetune(FinetuneConfig(**settings, **plain, ema_decay=0.9))
    else:
        linear_probe(LinearProbeConfig(**settings))
    rows = lines(tmp_path / "run" / "skipped.jsonl")
    white = [[s["name"] for s in row["samples"] if s["name"].endswith("white.png")] for row in rows]
    assert len(white) == 2 and all(len(names) == 1 for names in white)
    for file in find_checkpoints(tmp_path / "run" / "checkpoints")[-1].glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    result = replayed(capsys, "--run", str(tmp_path / "run"))
    assert result["reproduced"] and result["gradients"] and result["module"]["name"]
    if task == "finetune":
        assert bad(result) == ["white.png"]
    else:  # whose features are normalised by those of the whole batch
        assert len(bad(result)) == 8
