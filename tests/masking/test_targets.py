import math

import pytest
import torch
from torch import Tensor

import efficient_mae as emae
from efficient_mae.masking import mask_from_noise
from efficient_mae.masking.targets import farthest_targets, num_targets, random_targets


def test_beta_scales_with_the_patch_size():
    mask = emae.random_masking(500, (16, 16), 0.85, torch.Generator().manual_seed(0))
    kept = {size: emae.select_targets(emae.p2dist(mask, size), size, beta=26.0) for size in (14, 16)}
    counts = {size: predicted.sum().item() / len(mask) for size, predicted in kept.items()}
    assert counts[14] == pytest.approx(counts[16], rel=0.01)
    unscaled = emae.select_targets(emae.p2dist(mask, 14), patch_size=16, beta=26.0)
    assert unscaled.sum().item() / len(mask) > 1.02 * counts[16]


def test_thresholds_include_beta_and_exclude_visible_and_infinite():
    d = torch.tensor([[[0.0, 5.0], [26.0, math.inf]]])
    assert emae.select_targets(d, beta=26.0).tolist() == [[[False, True], [True, False]]]
    assert emae.select_targets(d, beta=25.9).tolist() == [[[False, True], [False, False]]]
    assert emae.select_targets(d, beta=None).tolist() == [[[False, True], [True, False]]]


def test_weights():
    d = torch.tensor([0.0, 4.0, 9.0, math.inf])
    torch.testing.assert_close(emae.flatten_weights(d, gamma=0.5), torch.tensor([0, 1 / 2, 1 / 3, 0]))
    assert emae.flatten_weights(d, gamma=0.0).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: emae.select_targets(torch.ones(1, 1, 1), beta=0.0),
        lambda: emae.flatten_weights(torch.ones(1), gamma=-0.1),
        lambda: emae.flatten_weights(torch.ones(1), gamma=math.nan),
    ],
)
def test_values_that_cannot_be(call):
    with pytest.raises(ValueError, match=r"beta=0.0|gamma=(-0.1|nan)"):
        call()


def masks_of(images: int, grid: tuple[int, int], ratio: float = 0.75, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.rand(images, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    return mask_from_noise(noise, grid, ratio), noise


def test_random_targets_are_a_uniform_choice_of_the_hidden_patches():
    """Each pair of patches that are hidden is chosen as often as any other, whatever decided that they are hidden."""
    mask, noise = masks_of(40_000, (2, 4))  # 2 visible, 6 hidden
    chosen = random_targets(mask, noise, 2)
    assert not (chosen & ~mask).any() and (chosen.flatten(1).sum(dim=1) == 2).all()
    hidden, chosen = mask.flatten(1), chosen.flatten(1)
    for one in range(8):
        for other in range(one):
            both_hidden = hidden[:, one] & hidden[:, other]
            share = (chosen[:, one] & chosen[:, other])[both_hidden].double().mean().item()
            assert share == pytest.approx(1 / 15, abs=0.01)  # one pair of six patches' fifteen


@pytest.mark.parametrize("grid", [(1, 9), (3, 5), (6, 6)])
def test_farthest_targets_beside_the_sampling_written_out(grid: tuple[int, int]):
    mask, noise = masks_of(20, grid, 0.7)
    hidden = int(mask[0].sum())
    for count in (1, hidden // 3, hidden - 1, hidden, hidden + 5):
        found = farthest_targets(mask, noise, count)
        for image in range(len(mask)):
            left = [tuple(cell) for cell in mask[image].nonzero().tolist()]
            number = {cell: noise[image, cell[0] * grid[1] + cell[1]].item() for cell in left}
            chosen: list[tuple[int, ...]] = []
            while left and len(chosen) < count:
                apart = {cell: min((math.dist(cell, one) for one in chosen), default=0.0) for cell in left}
                # Distances are square roots of whole numbers: rounded, equal ones are equal.
                best = max(left, key=lambda cell: (round(apart[cell], 9), number[cell]))
                chosen.append(best)
                left.remove(best)
            assert sorted(chosen) == [tuple(cell) for cell in found[image].nonzero().tolist()]


def test_farthest_targets_leave_no_hole_where_random_ones_do():
    mask, noise = masks_of(50, (14, 14), 0.85)
    count = num_targets(int(mask[0].sum()), 0.25)
    holes = []
    for choose in (farthest_targets, random_targets):
        chosen = choose(mask, noise, count)
        reach = emae.p2dist_exact(~chosen, patch_size=1)  # from a patch to the nearest chosen one
        holes.append((reach * mask).flatten(1).amax(dim=1).mean().item())
    assert holes[0] < 0.75 * holes[1]


@pytest.mark.parametrize("choose", [random_targets, farthest_targets])
def test_what_is_chosen_of_an_image_is_its_own(choose):
    """Not of the batch that it is in, nor of more numbers than its own."""
    mask, noise = masks_of(6, (5, 4))
    together = choose(mask, noise, 7)
    assert torch.equal(together, torch.cat([choose(*one, 7) for one in zip(mask.split(1), noise.split(1))]))
    few = mask.clone()
    few[0].view(-1)[mask[0].flatten().nonzero()[3:, 0]] = False
    assert choose(few, noise, 7)[0].sum() == 3
    even = torch.zeros_like(noise)
    assert choose(mask, even, 7).flatten(1).sum(dim=1).tolist() == [7] * 6


def test_a_share_is_of_the_hidden_patches_to_the_nearest():
    model = emae.create_model(
        "mae_vit_tiny_patch16", depth=1, decoder_depth=1, beta=None, targets="random", prediction_ratio=0.5
    )
    layout = model.plan(3, generator=torch.Generator().manual_seed(0))
    assert layout.predicted.flatten(1).sum(dim=1).tolist() == [num_targets(167, 0.5)] * 3 == [84] * 3
    # Given masks need numbers of their own, which follow from the generator.
    again = [model.plan(3, torch.Generator().manual_seed(seed), layout.mask).predicted for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    with pytest.raises(ValueError, match="targets=random: chosen by chance; the masks need their noise"):
        model.config.planner().plan(layout.mask)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"targets": "fps"}, "targets='fps': must be one of p2dist, random, farthest"),
        ({"prediction_ratio": 0.5}, "prediction_ratio=0.5: targets=p2dist goes by beta"),
        ({"targets": "random", "beta": None}, "targets=random: needs prediction_ratio"),
        ({"targets": "farthest", "prediction_ratio": 0.5}, "beta=26.0: targets=farthest goes by prediction_ratio"),
        (
            {"targets": "random", "beta": None, "prediction_ratio": 0.5, "schedule": "curriculum"},
            "schedule=curriculum: begins with the easiest patches; give targets p2dist, not random",
        ),
        (
            {"targets": "random", "beta": None, "prediction_ratio": 0.002},
            "prediction_ratio=0.002: reconstructs none of 167 hidden patches; take at least 0.00599",
        ),
        (
            {"targets": "random", "beta": None, "prediction_ratio": 1.5},
            "prediction_ratio=1.5: must be greater than 0",
        ),
        ({"shuffle": "all"}, "shuffle='all': must be null or one of targets, difficulties"),
        ({"shuffle": "targets", "beta": None}, "shuffle=targets: as many as beta leaves, and beta is null"),
        (
            {"shuffle": "difficulties", "targets": "random", "beta": None, "prediction_ratio": 0.5},
            "shuffle=difficulties: targets=random are chosen by chance already; give targets p2dist",
        ),
        (
            {"shuffle": "targets", "schedule": "curriculum"},
            "schedule=curriculum: begins with the easiest patches; shuffle=targets leaves it to chance",
        ),
        ({"decoder": "crossed"}, "decoder='crossed': must be one of self, cross"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, what: str):
    with torch.device("meta"), pytest.raises(ValueError, match=what):
        emae.create_model("mae_vit_tiny_patch16", **settings)
