"""What methods on whole images share: their plans, and the mask token in place of hidden patches."""

import pickle
from functools import partial

import pytest
import torch
from torch import Tensor

from efficient_mae.masking import mask_from_noise
from efficient_mae.methods import MethodConfig, MethodSettings, Output
from efficient_mae.methods.masked import MaskedMethod, MaskedPlan, MaskedPlanner

PLANNER = MaskedPlanner(partial(mask_from_noise, grid_size=(2, 3), mask_ratio=0.5))


class Config(MethodConfig, MethodSettings):
    method = "width"

    def planner(self, unit: int | None = None) -> MaskedPlanner:
        return PLANNER


class Width(MaskedMethod):
    Settings, Config = MethodSettings, Config

    def learn(self, images: Tensor, latent: Tensor, plan: MaskedPlan) -> Output:
        errors = latent.flatten(0, 2)[plan.ids_hidden].square().mean(dim=1)
        return Output((plan.weights * errors).sum(), errors, plan)


@pytest.fixture
def model() -> Width:
    torch.manual_seed(0)
    return Width(Config(img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=1, num_heads=3))


def test_a_plan_says_what_is_hidden():
    noise = torch.rand(4, 6)
    plan = PLANNER(noise)
    torch.testing.assert_close(plan.mask, mask_from_noise(noise, (2, 3), 0.5))
    hidden = plan.mask.nonzero()
    assert plan.images.tolist() == hidden[:, 0].tolist()
    assert (plan.ids_hidden % 6).tolist() == (hidden[:, 1] * 3 + hidden[:, 2]).tolist()
    assert plan.weights.tolist() == [1.0] * len(hidden) and plan.to("cpu") is plan
    assert plan.to("meta").mask.device.type == "meta"
    again = pickle.loads(pickle.dumps(PLANNER))(noise)
    assert torch.equal(again.mask, plan.mask)


def test_masks_are_given_or_drawn(model: Width):
    images, mask = torch.randn(2, 1, 8, 12), torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[1, 0, 2] = True
    out = model(images, mask)
    assert torch.equal(out.mask, mask) and len(out.errors) == 1
    assert torch.equal(out.loss, model(images, PLANNER.plan(mask)).loss)
    drawn = (model(images, generator=torch.Generator().manual_seed(seed)).mask for seed in (1, 1, 2))
    first, same, other = drawn
    assert torch.equal(first, same) and not torch.equal(first, other) and (first.flatten(1).sum(dim=1) == 3).all()
    with pytest.raises(ValueError, match=r"mask is torch.bool of shape \(2, 3, 2\): must be torch.bool of"):
        model(images, mask.mT)


def test_the_mask_token_learns(model: Width):
    out = model(torch.randn(2, 1, 8, 12), torch.ones(2, 2, 3, dtype=torch.bool))
    out.loss.backward()
    assert model.mask_token.grad.abs().sum() > 0 and model.backbone.patch_embed.proj.weight.grad.abs().sum() == 0
    assert {"mask_token", "cls_token", "norm.weight"} <= model.state_dict().keys()
