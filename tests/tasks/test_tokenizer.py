"""Training a tokenizer: a task like any other on the one engine."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import TrainBatch
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import load_tokenizer
from efficient_mae.tasks.tokenizer import (
    Schedule,
    TokenizerConfig,
    TokenizerRun,
    gumbel_noise,
    make_tokenizer_run,
    noise_seeds,
)

from .conftest import flags, rows

# 43 images in batches of 8: 5 steps an epoch.
SMALL = {
    "in_chans": 1, "img_size": 16, "stride": 4, "vocab_size": 16, "width": 16, "num_blocks": 1, "epochs": 8,
    "batch_size": 8, "base_lr": 0.1, "device": "cpu", "precision": "fp32", "num_workers": 0, "checkpoint_every": 4,
    "log_every": 1, "panel_every": 4,
}  # fmt: skip
LAST = "checkpoints/step-00000040"


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    emae.tokenizer(data=images, out=out, **SMALL)
    return out


def test_it_learns_to_draw(run: Path):
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert len(losses) == 40 and max(losses[-5:]) < 0.5 * losses[0]
    figures = [row for row in rows(run) if "perplexity" in row]
    assert [row["epoch"] for row in figures] == [4.0, 8.0] and all(1 <= row["perplexity"] <= 16 for row in figures)
    assert [panel.name for panel in sorted((run / "figures").iterdir())] == [
        "panel-epoch-0004.png",
        "panel-epoch-0008.png",
    ]


def test_what_it_leaves(run: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tokenizer", *flags(data=images, out=run, **SMALL), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "is finished: 40 steps" in err
    tokenizer = load_tokenizer(run)
    assert found["digest"] == tokenizer.digest == load_tokenizer(run / LAST / "model.safetensors").digest
    assert found["tokenizer"] == str(run / "tokenizer.safetensors") and Path(found["report"]).is_file()
    assert (tokenizer.in_chans, tokenizer.vocab_size, tokenizer.stride) == (1, 16, 4)
    use = json.loads((run / "codebook.json").read_text())
    assert use["images"] == 43 and {name: found[name] for name in ("used", "perplexity")}.items() <= use.items()
    assert len(use["counts"]) == use["used"] * 16 and sum(use["counts"]) == 43 * 16


def test_interrupted_and_resumed_is_bit_identical(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done = []

    def die(self: TokenizerRun) -> None:
        self.schedule.step += 1
        done.append(self)
        if len(done) == 23:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TokenizerRun, "after_step", die)
        emae.tokenizer(data=images, out=tmp_path, **SMALL)
    assert max((tmp_path / "checkpoints").iterdir()).name == "step-00000020"
    emae.tokenizer(data=images, out=tmp_path, **SMALL)
    for file in (f"{LAST}/model.safetensors", f"{LAST}/optimizer.safetensors", "tokenizer.safetensors"):
        assert (tmp_path / file).read_bytes() == (run / file).read_bytes()
    assert rows(tmp_path) == rows(run)


def test_micro_batches_change_nothing_beyond_rounding(run: Path, images: Path, tmp_path: Path):
    emae.tokenizer(data=images, out=tmp_path, **SMALL | {"accum_iter": 4})
    whole, parts = (load_file(out / LAST / "model.safetensors") for out in (run, tmp_path))
    begun = make_tokenizer_run(settings(images, tmp_path), ALONE).model.state_dict()
    went = sum(float((whole[name] - begun[name]).square().sum()) for name in whole) ** 0.5
    apart = sum(float((whole[name] - parts[name]).square().sum()) for name in whole) ** 0.5
    assert 0 < apart < 1e-2 * went


def settings(images: Path, out: Path, **others) -> TokenizerConfig:
    return TokenizerConfig(**{**SMALL, "data": str(images), "out": str(out), **others})


def test_what_a_sample_adds_is_its_own(images: Path, tmp_path: Path):
    """Whatever others are in its micro-batch: so several processes share a batch, and one replays their steps."""
    run = make_tokenizer_run(settings(images, tmp_path), ALONE)
    objective, dataset = run.objective(), run.dataset()
    run.schedule.step = 7
    pairs = [(0, 3), (1, 3), (0, 20), (4, 7)]
    batch = dataset.__getitems__(pairs)
    together = objective.sample_sums(run.model, batch)
    alone = torch.cat([objective.sample_sums(run.model, dataset.__getitems__([pair])) for pair in pairs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
    assert objective.weight(batch) == 4 and objective.weighted_sum(run.model, batch).isclose(together.sum())
    assert isinstance(batch, TrainBatch) and len(together.unique()) == 4


def test_noise_is_gumbels_and_each_samples_own():
    seeds = noise_seeds(torch.rand(5, 2, generator=torch.Generator().manual_seed(0))).seeds
    noise = gumbel_noise(seeds, (50, 20, 20), torch.device("cpu"))
    assert len(set(seeds)) == 5 and torch.equal(noise[2:3], gumbel_noise(seeds[2:3], (50, 20, 20), noise.device))
    expected = torch.distributions.Gumbel(0.0, 1.0)
    assert abs(noise.mean() - expected.mean) < 0.01 and abs(noise.var() - expected.variance) < 0.02
    assert noise.isfinite().all() and (noise[0] != noise[1]).float().mean() > 0.99


def test_the_schedule():
    schedule = Schedule(101, (1.0, 1 / 16), kl_weight=0.5)
    seen = {}
    for step in (0, 10, 20, 40, 80, 100):
        schedule.step = step
        seen[step] = schedule.temperature, schedule.weight
    assert seen[0] == (1.0, 0.0) and seen[10][1] == 0.25 and seen[20][1] == seen[100][1] == 0.5
    assert seen[40][0] == pytest.approx(1 / 4) and seen[80][0] == seen[100][0] == 1 / 16


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"img_size": 18}, "img_size=18: must be multiples of stride=4"), ({"stride": 6}, "stride=6: must be 2, 4"),
     ({"parallel": "fsdp"}, "take ddp"), ({"temperature": [1.0, 0.0]}, r"temperature\[1\]=0.0"),
     ({"kl_weight": -1}, "kl_weight=-1"), ({"weights": "x"}, "unknown")],
)  # fmt: skip
def test_what_cannot_work_is_refused(wrong: dict, said: str, images: Path, tmp_path: Path):
    with pytest.raises(InputError, match=said):
        emae.tokenizer(data=images, out=tmp_path / "run", **SMALL | wrong)
    assert not (tmp_path / "run").exists()
