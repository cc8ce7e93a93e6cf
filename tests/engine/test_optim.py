import pytest
import torch

import efficient_mae as emae
from efficient_mae.engine.optim import build_adamw, learning_rate


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_relative_positions_are_not_decayed(kind: str):
    settings = {"img_size": 16, "mask_unit": 8, "depth": (1, 1)}
    model = emae.create_model(f"simmim_{kind}_tiny_window4", **settings)
    decayed = build_adamw(model, weight_decay=0.05).param_groups[0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)].rpartition(".")[0].rpartition(".")[2] for parameter in decayed["params"]}
    assert decayed["weight_decay"] == 0.05
    assert found == {"proj", "qkv", "fc1", "fc2", "reduction", "0"}  # of the embedding, blocks, merging and head


def test_no_decay_on_biases_norms_and_tokens():
    model = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=1, decoder_depth=1)
    optimizer = build_adamw(model, weight_decay=0.05)
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    plain = {name for name, parameter in model.named_parameters() if decay[parameter] == 0}
    expected = {name for name, _ in model.named_parameters() if name.endswith(("bias", "token")) or "norm" in name}
    assert plain == expected
    assert set(decay.values()) == {0.0, 0.05}
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_warm_up_then_half_a_cosine():
    rate = [learning_rate(step, peak=2.0, warmup_steps=10, total_steps=110) for step in range(110)]
    assert rate[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    reference = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=100)
    for step in range(10, 110):
        assert rate[step] == pytest.approx(cosine.get_last_lr()[0], abs=1e-9)
        reference.step()
        cosine.step()


def test_it_ends_above_zero():
    rate = [learning_rate(step, peak=2.0, warmup_steps=0, total_steps=100, lowest=0.5) for step in range(101)]
    reference = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=100, eta_min=0.5)
    for step in range(101):
        assert rate[step] == pytest.approx(cosine.get_last_lr()[0], abs=1e-9)
        reference.step()
        cosine.step()
    assert rate[-1] == 0.5


def test_no_warm_up():
    assert learning_rate(0, peak=1.0, warmup_steps=0, total_steps=10) == 1.0
