"""Weights under the names, and in the wrappers, that others give them; timm and transformers say what is right."""

from pathlib import Path

import pytest
import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import save_file
from torch import Tensor

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.interop import load_statistics, read_trained

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def their_vit(**settings) -> timm_vit.VisionTransformer:
    """timm's, with weights that all show."""
    torch.manual_seed(1)
    usual = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 0}
    vit = timm_vit.VisionTransformer(**usual | settings).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return vit


def same_features(path: Path | str, theirs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(emae.load(path)(PICTURES), theirs, rtol=1e-3, atol=1e-3)


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


WRAPPERS = {
    "bare": lambda weights: weights,
    "module.": lambda weights: prefixed("module.", weights),
    "_orig_mod.": lambda weights: prefixed("_orig_mod.", weights),
    "module._orig_mod.": lambda weights: {"model": prefixed("module._orig_mod.", weights)},
    "backbone.": lambda weights: {"state_dict": prefixed("backbone.", weights) | {"head.3.weight": torch.ones(5, 7)}},
    "encoder.": lambda weights: {"state_dict": prefixed("encoder.", weights)},
    "model": lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": lambda weights: {"state_dict": prefixed("model.", weights), "lr": 0.1},
    "teacher": lambda weights: {
        "student": prefixed("module.backbone.", {name: value * 2 for name, value in weights.items()}),
        "teacher": prefixed("backbone.", weights) | {"head.mlp.0.weight": torch.ones(9, 9)},
    },
    "teacher in one": lambda weights: {
        "state_dict": prefixed("student.", {name: value * 2 for name, value in weights.items()})
        | prefixed("teacher.", weights)
    },
    "a model": lambda weights: {"model": {"backbone": weights}},
    "an epoch beside them": lambda weights: {**weights, "epoch": 3, "args": {"lr": 0.1}},
    "a tensor beside their dict": lambda weights: {"model": weights, "step": torch.tensor(3)},
    "compiled blocks": lambda weights: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in weights.items()
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str, tmp_path: Path):
    vit = their_vit()
    content = WRAPPERS[wrapper](dict(vit.state_dict()))
    torch.save(content, tmp_path / "weights.pth")
    expected = vit.forward_features(PICTURES).detach()
    same_features(tmp_path / "weights.pth", expected)
    if all(isinstance(value, Tensor) for value in content.values()):
        save_file({name: value.clone() for name, value in content.items()}, tmp_path / "weights.safetensors")
        same_features(tmp_path / "weights.safetensors", expected)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("student", "teacher"), "teacher"),  # DINO's
        (("state_dict_ema", "state_dict"), "state_dict"),  # timm's
        (("model_ema", "model"), "model"),
        (("student", "anything"), None),
    ],
)
def test_which_of_several_encoders_is_taken_is_said(names: tuple[str, str], taken: str | None, tmp_path: Path):
    vits = {name: {key: value * (number + 1) for key, value in their_vit().state_dict().items()}
            for number, name in enumerate(names)}  # fmt: skip
    file = tmp_path / "weights.pth"
    torch.save({**vits, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}, file)
    if taken is None:
        with pytest.raises(ValueError, match="holds no state dict, neither itself nor under .*; it has student, any"):
            emae.load(file)
        return
    (other,) = set(names) - {taken}
    with pytest.warns(UserWarning) as said:
        trained = read_trained(file)
    assert [str(one.message) for one in said] == [
        f"{file}: holds several encoders: {taken} is taken, and {other} left out; to take another, give a file with "
        "it alone"
    ]
    assert torch.equal(trained.model.state_dict()["norm.weight"], vits[taken]["norm.weight"])
    assert trained.left_out == {f"{other}.{name}": value.numel() for name, value in vits[other].items()}


def test_in_one_dict_it_is_said_too(tmp_path: Path):
    vit = dict(their_vit().state_dict())
    torch.save({"state_dict": prefixed("student.", vit) | prefixed("teacher.", vit)}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"holds several encoders: teacher\. is taken, and student\. left out"):
        emae.load(tmp_path / "a.pth")


def test_what_is_left_out_is_named(tmp_path: Path):
    weights = their_vit(num_classes=10).state_dict()
    torch.save(
        {"teacher": prefixed("backbone.", weights) | {"head.mlp.weight": torch.ones(9, 9)}}, tmp_path / "a.pth"
    )
    assert read_trained(tmp_path / "a.pth").left_out == {"head.weight": 1920, "head.bias": 10, "head.mlp.weight": 81}


@pytest.mark.parametrize(
    "settings",
    [
        {"init_values": 0.5},  # layer scale, as in DINOv2
        {"no_embed_class": True},
        {"num_classes": 7, "global_pool": "avg", "fc_norm": False},
    ],
)
def test_what_computes_the_same_in_other_words(settings: dict, tmp_path: Path):
    vit = their_vit(**settings)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    same_features(tmp_path / "vit.safetensors", vit.forward_features(PICTURES).detach())


def test_weights_of_half_precision(tmp_path: Path):
    vit = their_vit().half()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    same_features(tmp_path / "vit.safetensors", vit.float().forward_features(PICTURES).detach())
    assert emae.load(tmp_path / "vit.safetensors").cls_token.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda: {"conv1.weight": torch.ones(4, 3, 7, 7), "bn1.bias": torch.ones(4)},
         "can't be told.* bn1.bias, conv1.weight"),
        (lambda: their_vit(reg_tokens=2).state_dict(), r"pos_embed \(1, 19, 192\)"),
        (lambda: their_vit(reg_tokens=2, no_embed_class=True).state_dict(), "with reg_token"),
        (lambda: their_vit(qk_norm=True).state_dict(), r"with blocks.0.attn.k_norm.bias; .*; and 5 more"),
        (lambda: their_vit(class_token=False, global_pool="avg").state_dict(), "another architecture"),
        (lambda: prefixed("a.", their_vit().state_dict()) | prefixed("b.", their_vit().state_dict()),
         "several encoders \\(a., b.\\); give a file with one"),
        (lambda: their_vit(embed_dim=96).state_dict(), "96 wide; its heads are known for 192"),
        (lambda: {"patch_embed.proj.weight": torch.ones(192, 3, 0, 0), "pos_embed": torch.ones(1, 5, 192)},
         "another"),
    ],
)  # fmt: skip
def test_what_is_no_plain_vit(weights, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "vit.safetensors"
    save_file({name: value.clone() for name, value in weights().items()}, file)
    with pytest.raises(ValueError, match=said):
        emae.load(file)
    assert main(["knn", "--weights", str(file), "--data", "fashion-mnist-sample"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and str(file) in err


def test_a_file_that_holds_itself(tmp_path: Path):
    one, other = {}, {}
    one["model"], other["state_dict"] = other, one
    torch.save(one, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights.pth: holds no state dict"):
        emae.load(tmp_path / "weights.pth")


def test_statistics_of_what_says_none(tmp_path: Path):
    save_file(their_vit(in_chans=1).state_dict(), tmp_path / "vit.safetensors")
    assert load_statistics(tmp_path / "vit.safetensors").mean == (0.5,)
