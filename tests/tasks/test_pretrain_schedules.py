"""Table 5's metrics and Table 6's schedules as settings of a pre-training run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import open_source
from efficient_mae.data.batches.order import sample_rng
from efficient_mae.engine.machine.distributed import join_processes
from efficient_mae.masking import mask_from_noise
from efficient_mae.masking.schedules import sample_difficulties
from efficient_mae.methods.mae import MAEOutput, MaskedAutoencoder
from efficient_mae.tasks.pretrain import PretrainRun, pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig, build_model, resolve

from .conftest import TINY, flags, rows
from .labelled import stop_after_checkpoints


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    small = {**TINY, "num_workers": 0, "epochs": 4, "batch_size": 8, "checkpoint_every": 7, "panel_every": 4}
    return PretrainConfig(data=str(data), out=str(out), **(small | settings))


def test_a_curriculum_resumes_where_it_was(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"schedule": "curriculum", "beta": None, "mask_ratio": 0.8}
    alone = pretrain(config(images, tmp_path / "alone", **settings))
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_after_checkpoints(patch, 1)
        pretrain(config(images, tmp_path / "stopped", **settings))
    again = pretrain(config(images, tmp_path / "stopped", **settings, num_workers=2))
    assert (again / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()


def test_a_curriculum_predicts_more_from_epoch_to_epoch(images: Path, tmp_path: Path):
    settings = config(images, tmp_path / "a", schedule="curriculum", beta=None)
    source = open_source(str(images))
    with join_processes("cpu") as processes:
        resolved = resolve(settings, source, processes.device)
        dataset = PretrainRun(resolved, source, build_model(resolved), processes).dataset()
    counts = [
        len(dataset.__getitems__([(epoch, index) for index in range(40)]).masks.value.ids_predict)
        for epoch in range(4)
    ]
    assert counts == sorted(counts) and len(set(counts)) == 4 and counts[-1] == 40 * 12


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[MAEOutput]:
    """What the model returns in training, from now on."""
    seen: list[MAEOutput] = []
    forward = MaskedAutoencoder.forward

    def noting(self: MaskedAutoencoder, *arguments):
        out = forward(self, *arguments)
        if self.training and not out.mask.is_meta:  # as when a report counts operations
            seen.append(out)
        return out

    monkeypatch.setattr(MaskedAutoencoder, "forward", noting)
    return seen


def test_with_repeats_each_sample_of_a_curriculum_goes_by_its_own_epoch(
    images: Path, tmp_path: Path, outputs: list[MAEOutput]
):
    settings = {**TINY, "num_workers": 0, "img_size": 32, "batch_size": 8, "panel_every": 8, "seed": 3}
    settings |= {"schedule": "curriculum", "beta": "null", "repeats": 4, "epochs": 8}
    arguments = flags(data=images, out=tmp_path / "a", **settings)
    assert main(["pretrain", *arguments]) == 0
    # Masks, which tell the samples: no two of them are alike.
    samples = {}
    for epoch in range(8):
        for index in range(43):
            noise = sample_rng(3, epoch, index, "mask").random(64, dtype="float32")
            samples[mask_from_noise(torch.from_numpy(noise)[None], (8, 8), 0.75)[0].numpy().tobytes()] = epoch, index
    assert len(samples) == 8 * 43
    usual = sample_difficulties((8, 8), 0.75, 4).numpy()
    met = []
    for out in outputs:
        pairs = [samples[mask.numpy().tobytes()] for mask in out.mask]
        met += pairs
        assert len({epoch for epoch, _ in pairs}) == 4 and len({index for _, index in pairs}) == 2
        for (epoch, _), mask, predicted in zip(pairs, out.mask, out.predicted):
            hardest = np.quantile(usual, 0.25 + 0.75 * epoch / 7, method="inverted_cdf") if epoch < 7 else np.inf
            assert torch.equal(predicted, mask & (emae.p2dist(mask[None], 4)[0] <= float(hardest)))
            assert epoch < 7 or predicted.sum() == 48
    # 40 of the images in each pass, once in each of its epochs.
    assert len(met) == len(set(met)) == 8 * 40 and {epoch for epoch, _ in met} == set(range(8))


@pytest.mark.parametrize("accum_iter", [1, 4])
@pytest.mark.parametrize("schedule", ["flatten", "curriculum"])
def test_micro_batches_without_a_target_do_not_end_a_run(
    images: Path, tmp_path: Path, outputs: list[MAEOutput], schedule: str, accum_iter: int
):
    """One image each, of which few have a patch with visible ones on both sides."""
    settings = {"schedule": schedule, "beta": 5.0, "batch_size": accum_iter, "epochs": 2, "checkpoint_every": 99}
    run = pretrain(config(images, tmp_path / "a", **settings, accum_iter=accum_iter, log_every=1))
    targets = np.array([len(out.prediction) for out in outputs]).reshape(-1, accum_iter)
    assert 0.1 < (targets == 0).mean() < 0.9
    logged = rows(run)
    assert [row["step"] for row in logged] == list(range(1, len(targets) + 1))
    for row, step in zip(logged, targets):
        assert ("loss" in row, row["grad_norm"] > 0) == (bool(step.sum()), bool(step.sum()))
        assert 0 < row.get("loss", 1) < 20
    assert not (run / "skipped.jsonl").exists() and (run / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "normalise", "mask_ratio": 0.8},
        {"schedule": "threshold"},
        {"difficulty": "visible_neighbours", "beta": None},
    ],
)
def test_a_run_goes_by_its_objective(images: Path, tmp_path: Path, settings: dict):
    run = pretrain(config(images, tmp_path / "a", epochs=1, log_every=1, **settings))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(0 < loss < 10 for loss in losses)
    loaded = emae.load(str(run))
    assert {name: getattr(loaded.config, name) for name in settings} == settings
    assert (run / "figures" / "panel-epoch-0001.png").is_file()
    assert torch.isfinite(loaded(torch.zeros(2, 1, 16, 16)).loss)
