"""SimMIM beside values of its published implementation, and what it refuses."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp

import efficient_mae as emae
from efficient_mae.bench.flops import count_gmacs
from efficient_mae.masking import unit_mask_from_noise
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "simmim_swin.safetensors")
CONFIG = SimMIMConfig(
    family="swin", img_size=(96, 96), in_chans=3, patch_size=4, embed_dim=12, depth=(2, 2, 2), num_heads=(2, 3, 4),
    window_size=6, mlp_ratio=2.0,
)  # fmt: skip
TINY = {"img_size": 32, "depth": (1, 1), "mask_unit": 8, "in_chans": 1}


def timm_name(name: str) -> str:
    name = name.removeprefix("weights.").removeprefix("encoder.")
    return re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)


@pytest.fixture
def golden() -> SimMIM:
    model = SimMIM(CONFIG).double()
    model.load_state_dict({timm_name(k): v.double() for k, v in GOLDEN.items() if k.startswith("weights.")})
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_the_published_one(golden: SimMIM, dtype: torch.dtype, tolerance: float):
    out = golden.to(dtype)(GOLDEN["input.image"].to(dtype), GOLDEN["input.mask"].bool())
    assert abs(out.loss.item() / GOLDEN["out.loss"].item() - 1) < tolerance + 1e-9  # theirs divides by 1e-5 more
    torch.testing.assert_close(out.reconstruction.float(), GOLDEN["out.reconstruction"], rtol=1e-5, atol=1e-5)
    out.loss.backward()
    grad, expected = golden.mask_token.grad.double(), GOLDEN["grad.encoder.mask_token"]
    assert (grad - expected).abs().max() < max(tolerance, 1e-9) * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_with_a_vit_it_is_the_published_one(dtype: torch.dtype, tolerance: float):
    golden = load_file(Path(__file__).parents[1] / "golden" / "simmim_vit.safetensors")
    model = SimMIM(SimMIMConfig(
        family="beit", img_size=(96, 96), in_chans=3, patch_size=16, embed_dim=36, depth=2, num_heads=3,
        window_size=None,
    ))  # fmt: skip
    for block in model.backbone.blocks:
        block.mlp = Mlp(36, 72)  # narrower than any that this software makes
    model.load_state_dict({timm_name(k): v for k, v in golden.items() if k.startswith("weights.")})
    out = model.to(dtype)(golden["input.image"].to(dtype), golden["input.mask"].bool())
    assert abs(out.loss.item() / golden["out.loss"].item() - 1) < tolerance + 1e-9
    torch.testing.assert_close(out.reconstruction.float(), golden["out.reconstruction"], rtol=1e-5, atol=1e-5)
    out.loss.backward()
    grad, expected = model.mask_token.grad.double(), golden["grad.encoder.mask_token"]
    assert (grad - expected).abs().max() < max(tolerance, 1e-9) * expected.abs().max()


def test_what_a_vit_begins_with():
    """The authors' layer scale of 0.1, no relative positions yet, and drop path that grows from 0."""
    model = emae.create_model("simmim_vit_tiny_patch8", img_size=32, depth=3, mask_unit=8, drop_path=0.2)
    scales = [scale for block in model.backbone.blocks for scale in (block.gamma_1, block.gamma_2)]
    assert len(scales) == 6 and all((scale == 0.1).all() for scale in scales)
    assert not model.backbone.rel_pos_bias.relative_position_bias_table.any()
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2])


def test_loss_by_hand(golden: SimMIM):
    images, mask = GOLDEN["input.image"].double(), torch.zeros(2, 24, 24, dtype=torch.bool)
    mask[0, :8], mask[1, 2, 3] = True, True
    out = golden(images, mask)
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(images)
    torch.testing.assert_close(out.loss, (images - out.reconstruction).abs()[pixels].mean())
    assert out.errors.shape == (8 * 24 + 1,)
    painted = golden.paint(images, out)
    assert torch.equal(painted[~pixels], images[~pixels]) and torch.equal(painted[pixels], out.reconstruction[pixels])


@pytest.mark.parametrize(("side", "patch", "hidden"), [(192, 4, 22), (224, 16, 30)])
def test_masks_are_whole_units(side: int, patch: int, hidden: int):
    grid = side // patch, side // patch
    mask = unit_mask_from_noise(torch.rand(500, grid[0] * grid[1]), grid, 32 // patch, 0.6)
    units = mask.view(500, side // 32, 32 // patch, side // 32, 32 // patch)
    first = units[:, :, :1, :, :1]
    assert torch.equal(units, first.expand_as(units))
    assert (first.flatten(1).sum(dim=1) == hidden).all()
    # Each unit as often as any other: a binomial's standard deviation is 0.022.
    assert (first.double().mean(dim=0) - hidden / first[0].numel()).abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "published"),
    [("swin_base_window6", 11.3), ("swin_large_window12", 26.0), ("swinv2_huge_window12", 86.2)],
)
def test_it_costs_what_table_3_says(name: str, published: float):
    with torch.device("meta"):
        config = emae.create_model(f"simmim_{name}").config
    assert count_gmacs(config, images=1) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["swin_tiny_window4", "swinv2_tiny_window4", "vit_tiny_patch4"])
def test_it_learns_from_what_is_hidden_alone(name: str):
    torch.manual_seed(0)
    model = emae.create_model(f"simmim_{name}", **TINY | ({"depth": 1} if "vit" in name else {}))
    for parameter in model.parameters():  # V2's blocks begin as if they weren't there
        torch.nn.init.normal_(parameter, std=0.1)
    images, mask = torch.randn(2, 1, 32, 32), torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :2, 2:4] = True
    images.requires_grad_()
    out = model(images, mask)
    hidden = torch.zeros(32, 32, dtype=torch.bool)
    hidden[:8, 8:16] = True
    # What is hidden is a target: of the loss by itself its gradient is a constant's.
    (grad,) = torch.autograd.grad(out.loss, images)
    assert grad[:, 0, hidden].abs().unique().numel() == 1 and grad[:, 0, ~hidden].abs().max() > 0
    (seen,) = torch.autograd.grad(model(images, mask).reconstruction.sum(), images)
    assert (seen[:, 0, hidden] == 0).all()


def test_a_list_is_as_good_as_a_tuple():
    kinds = ({"depth": [1, 1]}, {"depth": (1, 1)})
    listed, given = (emae.create_model("simmim_swin_tiny_window4", **TINY | kind) for kind in kinds)
    assert listed.config == given.config and listed.config.depth == (1, 1)


def test_what_cannot_work_is_one_line():
    for changed, message in (
        ({"mask_unit": 6}, "mask_unit=6: must be a multiple of the patches' 4 pixels"),
        ({"mask_unit": 12}, "mask_unit=12: does not divide images of 32x32; take another"),
        ({"mask_ratio": 0.99}, "mask_ratio=0.99 leaves none of 16 units visible: take at most 0.9375"),
        ({"img_size": 48}, "window_size=8 does not divide the 12 x 12 places of stage 1"),
        ({"depth": 2}, "depth=2: of simmim_swin_tiny_window8 it must be one number for each stage, as 2,2,18,2"),
    ):
        with pytest.raises(ValueError, match=message):
            emae.create_model("simmim_swin_tiny_window8", **TINY | changed)
    with pytest.raises(ValueError, match="unknown model 'mae_swin_base_window6': mae takes no swin encoder"):
        emae.create_model("mae_swin_base_window6")
    with pytest.raises(ValueError, match="did you mean simmim_swin_base_window6"):
        emae.create_model("simmim_swin_bse_window6")
