"""Costs that are counted, and times that are estimated, before anything is run."""

from pathlib import Path

import pytest

from efficient_mae.bench.flops import count_gmacs, encoder_gmacs
from efficient_mae.study.cells import CELLS
from efficient_mae.study.costs import estimated_seconds, forward_gmacs, training_flops
from efficient_mae.study.listing import duration, measure_speed
from efficient_mae.study.presets import PRESETS, pretrained_config
from tests.methods.tokenizers import write_tokenizer


def test_encoder_alone():
    # ViT-L/16 at 224 pixels: 61.6 GFLOPs in Table 1, and by hand.
    config = pretrained_config(PRESETS["paper"].pretraining(CELLS["mae-0.75"]))
    width, tokens = 1024, 197
    by_hand = 24 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 196 * 768 * width
    assert encoder_gmacs(config) == pytest.approx(by_hand / 1e9, rel=1e-3)


def test_training_costs_three_forward_passes_of_two_flops_a_multiply_accumulate():
    preset, cell = PRESETS["cpu"], CELLS["mae-0.75"]
    config = pretrained_config(preset.pretraining(cell))
    alone, tuned = (training_flops(preset, cell, 10_000, judges=judges) for judges in ((), ("finetune",)))
    epochs = preset.settings("finetune", cell)["epochs"]
    assert tuned - alone == pytest.approx(6e9 * encoder_gmacs(config) * 1000 * epochs)
    assert training_flops(preset, cell, 20_000) == pytest.approx(2 * alone)


@pytest.mark.parametrize("name", ["beit", "cae"])
def test_a_model_of_tokens_counts_the_tokenizer_that_is_made_for_it(name: str, tmp_path: Path):
    preset, cell = PRESETS["smoke"], CELLS[name]
    tokenizer = write_tokenizer(tmp_path, stride=4)  # of the preset's size
    as_run = pretrained_config({**preset.pretraining(cell), "tokenizer": str(tokenizer)})
    assert forward_gmacs(preset, cell) == pytest.approx(count_gmacs(as_run), rel=1e-9)


def test_several_jobs_share_the_device_but_not_their_starts():
    one, two = (estimated_seconds([1e12] * 4, stages=2, speed=1e12, jobs=jobs) for jobs in (1, 2))
    assert one > two > one / 2


def test_durations():
    assert [duration(seconds) for seconds in (50, 100, 7200, 1e6)] == [
        "50 seconds",
        "2 minutes",
        "2 hours",
        "12 days",
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_speed_is_measured_where_runs_compute(device: str):
    assert measure_speed(device) > 1e8
