"""Table 6's schedulers and Table 5's metrics as a model's objective: pure functions of the mask and of progress."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import efficient_mae as emae
from efficient_mae.masking.schedules import (
    FIRST_SHARE,
    curriculum_threshold,
    normalising_weights,
    sample_difficulties,
)
from efficient_mae.methods.mae import MaskPlanner, MaskSettings


def plan(images: int = 500, progress: float = 1.0, **settings):
    noise = torch.rand(images, 196, generator=torch.Generator().manual_seed(1))
    planner = MaskPlanner((14, 14), 16, MaskSettings(**settings))
    return planner(noise, torch.full((images,), progress, dtype=torch.float64))


def predicted_an_image(layout) -> float:
    return layout.predicted.sum().item() / len(layout.mask)


@pytest.mark.parametrize(
    ("metric", "kept"), [("visible_neighbours", 114), ("inverse_distance_sum", 159), ("nearest_patch", 167)]
)
def test_targets_and_weights_of_table_5(metric: str, kept: int):
    layout = plan(2000, difficulty=metric, beta=None)
    assert predicted_an_image(layout) == pytest.approx(kept, abs=0.5)
    difficulty = emae.difficulty(layout.mask, metric=metric)[layout.predicted]
    torch.testing.assert_close(layout.weights, difficulty**-0.6)


def test_one_visible_neighbour_more_weighs_more_and_none_is_left_out():
    layout = plan(difficulty="visible_neighbours", beta=None, gamma=1.0)
    visible = torch.nn.functional.pad((~layout.mask).int(), (1, 1, 1, 1))
    neighbours = visible.unfold(1, 3, 1).unfold(2, 3, 1).sum(dim=(-1, -2))
    assert torch.equal(layout.predicted, layout.mask & (neighbours > 0))
    torch.testing.assert_close(layout.weights, neighbours[layout.predicted].float())


def test_k_reaches_p2dist():
    mask = emae.random_masking(4, (8, 8), 0.85, torch.Generator().manual_seed(0))
    assert torch.equal(emae.difficulty(mask, k=2), emae.p2dist(mask, k=2))
    assert not torch.equal(emae.difficulty(mask, k=2), emae.difficulty(mask))


def test_threshold_drops_hard_patches_and_weights_all_alike():
    layout = plan(schedule="threshold", beta=26.0)
    assert torch.equal(layout.predicted, plan(schedule="flatten").predicted)
    assert layout.weights.unique().tolist() == [1]


@pytest.mark.parametrize("metric", ["p2dist", "inverse_distance_sum"])
def test_curriculum_widens_from_the_easiest_to_all(metric: str):
    layouts = [
        plan(schedule="curriculum", beta=None, difficulty=metric, progress=progress) for progress in (0, 0.3, 0.7, 1)
    ]
    finite = plan(beta=None, difficulty=metric)
    shares = [len(layout.ids_predict) / len(finite.ids_predict) for layout in layouts]
    # Equally hard patches come in together: the share is the wanted one or a step beyond.
    for share, progress in zip(shares, (0, 0.3, 0.7, 1), strict=True):
        assert -0.01 < share - (FIRST_SHARE + (1 - FIRST_SHARE) * progress) < 0.1
    for earlier, later in pairwise(layouts):
        kept, new = earlier.predicted, later.predicted & ~earlier.predicted
        assert not (kept & ~later.predicted).any()
        assert later.difficulty[kept].max() < later.difficulty[new].min()
    assert torch.equal(layouts[-1].predicted, finite.predicted)
    assert layouts[0].weights.unique().tolist() == [1]


def test_equally_hard_patches_let_a_curriculum_begin_with_more_than_a_quarter():
    """As docs/readings.md has it: 31.7 % at 14 x 14 patches and ratio 0.85."""
    first, whole = (plan(2000, schedule="curriculum", beta=None, progress=progress) for progress in (0, 1))
    assert len(first.ids_predict) / len(whole.ids_predict) == pytest.approx(0.317, abs=0.002)


def test_a_curriculum_keeps_to_beta():
    full = plan(schedule="curriculum", beta=26.0, progress=1.0)
    assert torch.equal(full.predicted, plan(beta=26.0).predicted)


def test_progress_belongs_to_each_image():
    """As with `--repeats`, where a batch holds crops of several epochs."""
    noise = torch.rand(6, 196, generator=torch.Generator().manual_seed(1))
    planner = MaskPlanner((14, 14), 16, MaskSettings(schedule="curriculum"))
    progress = torch.linspace(0, 1, 6, dtype=torch.float64)
    mixed = planner(noise, progress).predicted
    for row in range(6):
        assert torch.equal(mixed[row], planner(noise[row : row + 1], progress[row : row + 1]).predicted[0])


def test_curriculum_threshold_is_a_quantile_and_in_the_end_none():
    values = torch.arange(1.0, 101)
    assert curriculum_threshold(values, 0.0) == np.quantile(values, FIRST_SHARE, method="inverted_cdf")
    assert curriculum_threshold(values, 0.5) == np.quantile(values, 0.625, method="inverted_cdf")
    assert curriculum_threshold(values, 1.0) == math.inf


def test_normalise_gives_the_distribution_of_mask_ratio_075():
    present, norm = plan(2000, schedule="normalise", beta=None), plan(2000, mask_ratio=0.75, beta=None)
    edges = np.quantile(present.difficulty[present.predicted], np.linspace(0, 1, 7))
    weighted, _ = np.histogram(present.difficulty[present.predicted], edges, weights=present.weights)
    wanted, _ = np.histogram(norm.difficulty[norm.predicted], edges)
    np.testing.assert_allclose(weighted / weighted.sum(), wanted / wanted.sum(), atol=0.02)
    unweighted, _ = np.histogram(present.difficulty[present.predicted], edges)
    assert abs(unweighted / unweighted.sum() - wanted / wanted.sum()).max() > 0.1
    assert present.weights[present.difficulty[present.predicted].argmin()] > 1.5 * present.weights.mean()


def test_normalising_to_the_present_ratio_changes_nothing():
    values = sample_difficulties((14, 14), 0.85)
    distances = torch.tensor([0.0, 9.0, 20.0, 60.0, math.inf])
    weights = normalising_weights(distances > 0, distances, values, values)
    assert weights.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("schedule", ["threshold", "curriculum", "normalise"])
def test_a_schedule_is_a_function_of_each_image_alone(schedule: str):
    whole, part = plan(8, schedule=schedule, progress=0.4), plan(500, schedule=schedule, progress=0.4)
    assert torch.equal(whole.mask, part.mask[:8])
    assert torch.equal(whole.predicted, part.predicted[:8])
    assert torch.equal(whole.weights, part.weights[: len(whole.weights)])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"difficulty": "p3dist"}, r"difficulty='p3dist': must be one of p2dist, p2dist_exact, visible_neighbours"),
        ({"schedule": "flat"}, r"schedule='flat': must be one of flatten, threshold, curriculum, normalise"),
        ({"difficulty": "nearest_patch"}, r"beta=26.0: bounds P2Dist, not difficulty=nearest_patch; give beta null"),
        ({"schedule": "normalise", "img_size": (4, 12), "mask_ratio": 0.6}, r"leaves none of 3 patches visible"),
    ],
)
def test_what_cannot_work_is_refused_when_the_model_is_made(settings: dict, said: str):
    with pytest.raises(ValueError, match=said):
        emae.create_model("mae_vit_tiny_patch4", **{"img_size": 16, "depth": 1, "decoder_depth": 1, **settings})


@pytest.mark.parametrize(("difficulty", "beta"), [("p2dist_exact", 26.0), ("visible_neighbours", None)])
@pytest.mark.parametrize("schedule", ["flatten", "normalise"])
def test_a_model_goes_by_them(difficulty: str, beta: float | None, schedule: str):
    model = emae.create_model(
        "mae_vit_tiny_patch4", img_size=32, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32,
        difficulty=difficulty, beta=beta, schedule=schedule,
    )  # fmt: skip
    out = model(torch.randn(3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.difficulty, emae.difficulty(out.mask, 4, difficulty))
    expected = (out.weights * out.errors).sum() / out.weights.sum()
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(model.plan(3, mask=out.mask).weights, out.weights)
