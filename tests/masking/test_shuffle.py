"""Controls: what decoder masking and the loss go by is left to chance, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import efficient_mae as emae
from efficient_mae.masking.difficulty import shuffle_difficulty
from efficient_mae.masking.settings import MaskSettings
from efficient_mae.methods.mae.layout import MaskLayout
from efficient_mae.methods.mae.planner import MaskPlanner

IMAGES, GRID, SIZE = 3000, (7, 7), 4
USUAL = MaskSettings(mask_ratio=0.95)
NOISE = torch.rand(IMAGES, 49, generator=torch.Generator().manual_seed(0))


def plan(shuffle: str | None, noise: torch.Tensor = NOISE, **others) -> MaskLayout:
    return MaskPlanner(GRID, SIZE, replace(USUAL, shuffle=shuffle, **others))(noise)


def test_an_image_keeps_its_difficulties_at_other_patches():
    usual, shuffled = plan(None), plan("difficulties")
    assert torch.equal(usual.mask, shuffled.mask)
    there, here = (layout.difficulty.flatten(1).numpy() for layout in (usual, shuffled))
    np.testing.assert_array_equal(np.sort(there, axis=1), np.sort(here, axis=1))
    assert not here[~usual.mask.flatten(1).numpy()].any()
    # An image's mean apart, a patch tells neither of its own distance nor of its place.
    hidden = usual.mask.flatten(1).numpy()
    there, here = (np.where(hidden, one - one.sum(axis=1, keepdims=True) / 47, 0) for one in (there, here))
    far, told = there[hidden], here[hidden]
    assert abs(spearmanr(far, told).statistic) < 4 / np.sqrt(len(far))
    by_patch = np.array([here[hidden[:, patch], patch].mean() for patch in range(49)])
    spread = here[hidden].std() / np.sqrt(IMAGES)
    assert abs(by_patch).max() < 4.5 * spread
    assert np.array([there[hidden[:, patch], patch].mean() for patch in range(49)]).std() > 10 * spread


def test_both_beta_and_gamma_go_by_the_shuffled():
    layout = plan("difficulties")
    within = layout.mask & (layout.difficulty <= 26 * SIZE / 16)
    assert torch.equal(layout.predicted, within)
    torch.testing.assert_close(layout.weights, layout.difficulty[within] ** -0.6)


def test_as_many_targets_at_random_weigh_what_they_are_far():
    usual, chosen = plan(None), plan("targets")
    counts = usual.predicted.flatten(1).sum(dim=1)
    assert counts.unique().numel() > 5, "the number differs by image"
    assert torch.equal(chosen.predicted.flatten(1).sum(dim=1), counts)
    assert not (chosen.predicted & ~chosen.mask).any()
    far = emae.p2dist(chosen.mask, patch_size=SIZE)
    torch.testing.assert_close(chosen.weights, far[chosen.predicted] ** -0.6)
    # Each hidden patch is as likely as any other of its image.
    shares = (counts / 47)[:, None, None].expand_as(far)
    hardest = chosen.mask & (far >= far.flatten(1).amax(dim=1)[:, None, None])
    expected, spread = shares[hardest].sum(), (shares * (1 - shares))[hardest].sum().sqrt()
    assert abs(chosen.predicted[hardest].sum() - expected) < 4.5 * spread
    assert not usual.predicted[hardest & (far > 26 * SIZE / 16)].any()


@pytest.mark.parametrize("shuffle", ["targets", "difficulties"])
def test_what_is_shuffled_of_an_image_is_its_own(shuffle: str):
    """Its numbers say all: not the batch that it is in, nor what was drawn before."""
    whole = plan(shuffle, NOISE[:40])
    for numbers in (range(7), range(7, 40)):
        part = plan(shuffle, NOISE[list(numbers)])
        assert torch.equal(part.predicted, whole.predicted[list(numbers)])
        assert torch.equal(part.difficulty, whole.difficulty[list(numbers)])
    assert torch.equal(plan(shuffle, NOISE[:40]).weights, whole.weights)


def test_a_number_for_each_patch_by_hand():
    mask = torch.tensor([[[True, False, True], [True, False, True]]])
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.7, 0.2, 0.6]])
    far = torch.tensor([[[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]])
    # By ascending noise the hidden patches are the third, the sixth, the fourth and the first.
    assert shuffle_difficulty(far, mask, noise).tolist() == [[[4.0, 0.0, 1.0], [3.0, 0.0, 2.0]]]


def test_given_masks_are_shuffled_by_the_generator():
    model = emae.create_model("mae_vit_tiny_patch4", img_size=28, depth=1, decoder_depth=1, shuffle="difficulties")
    mask = emae.random_masking(3, GRID, 0.85, torch.Generator().manual_seed(0))
    again = [model.plan(3, torch.Generator().manual_seed(seed), mask).difficulty for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    with pytest.raises(ValueError, match="shuffle=difficulties: chosen by chance; the masks need their noise"):
        model.config.planner().plan(mask)
    assert model.config.with_every_target().shuffle is None
