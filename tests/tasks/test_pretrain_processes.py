"""Pre-training by other numbers of processes, replicated or sharded, is the same pre-training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.processes import spawn

from .conftest import TINY

# 43 images: 5 steps an epoch, so the checkpoint that runs are resumed from lies in mid-epoch.
SCHEDULE = {"epochs": 2, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 9, "log_every": 1}
TOTAL_STEPS, FIRST_STEPS = 10, 3


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    small = {**TINY, **SCHEDULE, "depth": 2, "num_workers": 0, "clip_grad": 1.0}
    return PretrainConfig(data=str(data), out=str(out), **(small | settings))


def killed_copy(run: Path, out: Path) -> None:
    """The run as it would be if it had been killed after its first checkpoint."""
    shutil.copytree(run, out)
    (out / "encoder.safetensors").unlink()
    for checkpoint in (out / "checkpoints").iterdir():
        if checkpoint.name != f"step-{FIRST_STEPS:08d}":
            shutil.rmtree(checkpoint)


def in_process(rank: int, jobs: tuple[tuple[Path | None, PretrainConfig], ...]) -> None:
    for killed, settings in jobs:
        if killed is not None and rank == 0:
            killed_copy(killed, Path(settings.out))  # the others wait for this process before they look
        pretrain(settings)


def pretrain_on(world_size: int, *jobs: tuple[Path | None, PretrainConfig]) -> None:
    """Pre-train with these settings one after the other, each from the beginning or as a run that was killed."""
    spawn(world_size, in_process, jobs)


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs, named after what trained them: first, or first-then."""
    folder = tmp_path_factory.mktemp("runs")

    def settings(name: str, **more) -> PretrainConfig:
        return config(images, folder / name, parallel=name.rstrip("0123456789").split("-")[-1], **more)

    alone, sharded, replicated = (folder / name for name in ("ddp1", "fsdp2", "ddp2"))
    pretrain(settings("ddp1"))
    pretrain_on(
        2,
        (None, settings("fsdp2", knn_every=None, panel_every=1)),
        (None, settings("ddp2")),
        (sharded, settings("fsdp2-fsdp2")),
        (sharded, settings("fsdp2-ddp2")),
        (replicated, settings("ddp2-fsdp2")),
        (alone, settings("ddp1-fsdp2")),
        (alone, settings("ddp1-ddp2")),
    )
    pretrain_on(4, (sharded, settings("fsdp2-fsdp4", accum_iter=2)), (replicated, settings("ddp2-ddp4")))
    for before in (sharded, replicated):
        killed_copy(before, folder / f"{before.name}-ddp1")
        pretrain(settings(f"{before.name}-ddp1", accum_iter=4))
    return folder


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, TOTAL_STEPS + 1))
    return [row["loss"] for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return emae.load(run).state_dict()


@pytest.mark.parametrize(
    "name",
    ["fsdp2", "ddp2", "fsdp2-ddp2", "ddp2-fsdp2", "ddp1-fsdp2", "ddp1-ddp2", "fsdp2-fsdp4", "ddp2-ddp4"]
    + ["fsdp2-ddp1", "ddp2-ddp1"],
)
def test_it_is_the_run_of_one_process(runs: Path, name: str):
    assert losses(runs / name) == pytest.approx(losses(runs / "ddp1"), rel=1e-5)
    expected = weights(runs / "ddp1")
    for parameter, value in weights(runs / name).items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-4, atol=1e-6, msg=f"{name}: {parameter}")


@pytest.mark.parametrize("name", ["fsdp2", "ddp2"])
def test_the_difference_is_one_of_rounding(runs: Path, name: str):
    """Beside the way that the weights went: AdamW moves a weight whose gradient is all rounding as far as any."""
    ours, one, first = (
        torch.cat([value.flatten() for _, value in sorted(emae.load(path).state_dict().items())])
        for path in (runs / name, runs / "ddp1", runs / "ddp1" / "checkpoints" / f"step-{FIRST_STEPS:08d}")
    )
    assert (ours - one).norm() < 1e-3 * (one - first).norm()


def test_resumed_by_as_many_it_is_the_same_to_the_bit(runs: Path):
    assert losses(runs / "fsdp2-fsdp2") == losses(runs / "fsdp2")
    expected = weights(runs / "fsdp2")
    assert all(torch.equal(value, expected[name]) for name, value in weights(runs / "fsdp2-fsdp2").items())
    encoders = [(runs / name / "encoder.safetensors").read_bytes() for name in ("fsdp2", "fsdp2-fsdp2")]
    assert encoders[0] == encoders[1]


def test_a_sharded_checkpoint_is_plain_files_and_loads_like_any_other(runs: Path):
    checkpoint = runs / "fsdp2" / "checkpoints" / f"step-{TOTAL_STEPS:08d}"
    files = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())
    shards = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    assert files == [
        "checksums.json",
        *(f"{part}/{name}" for part in ("model", "optimizer") for name in ("metadata.json", *shards)),
        "state.json",
    ]
    pictures = torch.randn(2, 1, 16, 16)
    expected = emae.load(runs / "fsdp2" / "encoder.safetensors").forward_features(pictures)
    for path in (runs / "fsdp2", checkpoint):
        assert torch.equal(emae.load(path).backbone.forward_features(pictures), expected)


@pytest.mark.parametrize("shard", [1, 2])
def test_a_sharded_checkpoint_that_is_not_whole(runs: Path, tmp_path: Path, shard: int):
    checkpoint = shutil.copytree(runs / "fsdp2" / "checkpoints" / f"step-{TOTAL_STEPS:08d}", tmp_path / "step-1")
    file = checkpoint / "model" / f"shard-0000{shard}-model-00001-of-00001.safetensors"
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"step-1: damaged .model/{file.name} isn't what was written"):
        emae.load(checkpoint)
    (checkpoint / "checksums.json").unlink()  # a copy may lack them
    with pytest.raises(ValueError, match="model: not whole sharded weights"):
        emae.load(checkpoint)
    file.unlink()
    with pytest.raises(ValueError, match="model: (not whole sharded weights .a file is missing|weights of another)"):
        emae.load(checkpoint)


def test_pictures_are_drawn_of_a_sharded_model(runs: Path):
    assert len(list((runs / "fsdp2" / "figures").glob("panel-*.png"))) == 2


@pytest.mark.slow
def test_compiled_and_recomputed_blocks_are_sharded_too(runs: Path, images: Path, tmp_path: Path):
    settings = config(images, tmp_path / "run", parallel="fsdp", compile=True, grad_checkpointing=True)
    pretrain_on(2, (None, settings))
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "ddp1"), rel=1e-4)
