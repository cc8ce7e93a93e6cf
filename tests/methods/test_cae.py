"""CAE beside values of the published one, and what it does in a run."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor

import efficient_mae as emae
from efficient_mae.backbones import VisionTransformer
from efficient_mae.backbones.positions import sincos_position_embedding
from efficient_mae.backbones.vit import Mlp
from efficient_mae.masking import blockwise_mask_from_noise
from efficient_mae.methods.cae import CAE, CAEConfig, CAEPlan

with safe_open(Path(__file__).parents[1] / "golden" / "cae.safetensors", "pt") as tensors:
    GOLDEN: dict[str, Tensor] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    GRAD_NAMES: list[str] = tensors.metadata()["grad_norm_names"].split("\n")
CONFIG = CAEConfig(
    img_size=(32, 32), patch_size=8, in_chans=3, embed_dim=48, depth=2, num_heads=3, layer_scale=0.1, drop_path=0.0,
    smallest_block=2, regressor_depth=2, decoder_depth=2, vocab_size=96, mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip

# The published names' parts, and ours.
RENAMED = {
    "encoder.": "", "pretext_neck.norm2.": "decoder_norm.", "pretext_neck.norm.": "regressor_norm.",
    "pretext_neck.head.": "lm_head.", "pretext_neck.": "", "gamma_1_cross": "ls1.gamma",
    "gamma_2_cross": "ls2.gamma", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "_cross.": ".",
    "cross_attn.q_bias": "cross_attn.q.bias", "cross_attn.v_bias": "cross_attn.v.bias",
}  # fmt: skip


def our_name(name: str) -> str:
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under our names: keys have no bias there, and with us one that softmax takes out."""
    renamed = {our_name(name): value.double() for name, value in weights.items()}
    for name in [name for name in renamed if name.endswith(".attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        q, v = renamed.pop(name), renamed.pop(f"{stem}v_bias")
        renamed[f"{stem}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return renamed


def golden_model() -> tuple[CAE, VisionTransformer]:
    """The published model, and its second encoder, which is another here so that a mix-up would show."""
    model = CAE(CONFIG)
    for module in model.modules():
        if hasattr(module, "mlp"):
            module.mlp = Mlp(48, 96)  # narrower than any that this software makes
    weights = {name.removeprefix("weights."): value for name, value in GOLDEN.items() if name.startswith("weights.")}
    second = {name.removeprefix("teacher."): weights.pop(name) for name in [*weights] if name.startswith("teacher.")}
    model.double().load_state_dict(ours(weights))
    teacher = copy.deepcopy(model.backbone)
    teacher.load_state_dict(ours(second))
    return model, teacher


def test_it_is_the_published_one_to_the_last_gradient(monkeypatch: pytest.MonkeyPatch):
    model, teacher = golden_model()
    images, mask = GOLDEN["input.image"].double(), GOLDEN["input.mask"].view(2, 4, 4)

    def from_teacher(images: Tensor, plan: CAEPlan) -> Tensor:
        return teacher.forward_features(images, plan.ids_masked)[:, 1:].detach()

    def golden_tokens(images: Tensor, plan: CAEPlan) -> Tensor:
        return GOLDEN["input.token_ids"].flatten()[plan.ids_hidden]

    monkeypatch.setattr(model, "tokens", golden_tokens)
    with monkeypatch.context() as patch:
        patch.setattr(model, "latent_targets", from_teacher)
        out = model(images, mask)
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(out.latent.view(2, 8, 48), GOLDEN["out.latent_pred"], **exact)
    torch.testing.assert_close(out.latent_target.view(2, 8, 48), GOLDEN["out.latent_target"], **exact)
    torch.testing.assert_close(out.logits, GOLDEN["out.logits"], **exact)
    torch.testing.assert_close(out.loss, GOLDEN["out.loss_total"], **exact)
    out.loss.backward()
    torch.testing.assert_close(model.mask_token.grad, GOLDEN["grad.mask_token"], **exact)
    gradients = {name: value.grad for name, value in model.state_dict(keep_vars=True).items()}
    for name, norm in zip(GRAD_NAMES, GOLDEN["grad_norms"], strict=True):
        if name.endswith((".attn.q_bias", ".attn.v_bias")):
            fused = gradients[our_name(name).replace(name[-6:], "qkv.bias")].chunk(3)
            grad = fused[0 if name.endswith("q_bias") else 2]
            torch.testing.assert_close(fused[1], torch.zeros_like(grad), **exact)
        else:
            grad = gradients[our_name(name)]
        torch.testing.assert_close(grad.norm(), norm, **exact)
        if f"grad.{name}" in GOLDEN:
            torch.testing.assert_close(grad, GOLDEN[f"grad.{name}"], **exact)
    # The published code's second pass, in which its second encoder has caught up with the first.
    again = model(images, mask)
    torch.testing.assert_close(again.latent_target.view(2, 8, 48), GOLDEN["out.latent_target_second_pass"], **exact)
    alignment = (again.errors - out.errors).mean() + GOLDEN["out.loss_align"]
    torch.testing.assert_close(alignment, GOLDEN["out.loss_align_second_pass"], **exact)


def test_its_positions_are_the_published_ones():
    """Those of the golden file were rounded to float32 in another place."""
    model = CAE(CONFIG)
    torch.testing.assert_close(model.backbone.pos_embed, GOLDEN["weights.encoder.pos_embed"], rtol=0, atol=2e-7)
    column_first = sincos_position_embedding(48, (4, 4))[None]
    assert not torch.allclose(model.backbone.pos_embed, column_first)


def test_its_masks_are_the_published_ones():
    with torch.device("meta"):
        config = emae.create_model("cae_vit_base_patch16").config
    noise = torch.rand(200, 196, generator=torch.Generator().manual_seed(0))
    plan = config.planner()(noise)
    assert torch.equal(plan.mask, blockwise_mask_from_noise(noise, (14, 14), 98, 16, exact=True))
    assert plan.ids_keep.shape == (200, 98) and config.tokens(plan)["encoder_tokens"] == 99
    assert (config.layer_scale, config.drop_path, config.alignment) == (0.1, 0.1, 2.0)
    assert (config.regressor_depth, config.decoder_depth) == (4, 4)


def test_the_encoder_sees_no_hidden_patch(monkeypatch: pytest.MonkeyPatch):
    model = CAE(CONFIG).eval()
    images, plan = torch.randn(2, 3, 32, 32), model.plan(2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model, "tokens", lambda images, plan: torch.zeros_like(plan.ids_hidden))
    out = model(images, plan)
    hidden = plan.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    changed = model(torch.where(hidden, torch.randn_like(images), images), plan)
    assert torch.equal(changed.logits, out.logits) and torch.equal(changed.latent, out.latent)
    assert not torch.allclose(changed.latent_target, out.latent_target) and not out.latent_target.requires_grad


def test_masks_that_hide_unequal_numbers_are_refused():
    model = CAE(CONFIG)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, :2] = True
    with pytest.raises(ValueError, match="mask leaves between 14 and 15 patches visible"):
        model(torch.zeros(2, 3, 32, 32), mask)
    with pytest.raises(ValueError, match="mask leaves between 16 and 16 patches visible"):
        model(torch.zeros(2, 3, 32, 32), torch.zeros(2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must be torch.bool of shape \(2, 4, 4\)"):
        model(torch.zeros(2, 3, 32, 32), mask[:, :3])


def test_its_encoder_is_timms_with_layer_scale():
    torch.manual_seed(0)
    model = emae.create_model("cae_vit_tiny_patch8", img_size=32, depth=2).eval()
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.ls1.gamma)
    vit, images = emae.to_timm(model), torch.randn(2, 3, 32, 32)
    assert isinstance(vit, timm.models.VisionTransformer)
    torch.testing.assert_close(vit.forward_features(images), model.backbone.forward_features(images))
