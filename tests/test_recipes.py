"""The recipes that ship with the package: each parses, and says what its paper says."""

import re

import pytest

from efficient_mae.backbones.sizes import parse_name
from efficient_mae.cli import build_parser, recipes

COMMAND = {"pretrain": "pretrain", "mae_pretrain": "pretrain", "demo": "pretrain", "finetune": "finetune"}
PRETRAINING = [
    f"{prefix}pretrain_{size}_{epochs}"
    for prefix in ("", "mae_")
    for size in ("base16", "large16", "huge14")
    for epochs in (200, 800, 1600)
]
TUNING = [f"{task}_{size}" for task in ("finetune", "linear_probe") for size in ("base", "large", "huge")]


def settings(name: str) -> dict:
    kind = re.sub(r"_(base|large|huge).*", "", name)
    command = COMMAND.get(kind, kind.replace("_", "-"))
    given = ["--out", "o"] if name == "demo" else ["--data", "d", "--out", "o"]
    parsed = build_parser([command]).parse_args([command, "--config", str(recipes()[name]), *given])
    return vars(parsed[command])


def test_all_are_known_here():
    assert {*recipes()} >= {*PRETRAINING, *TUNING, "demo"}


@pytest.mark.parametrize("name", [*PRETRAINING, *TUNING, "demo"])
def test_it_parses_and_is_commented(name: str):
    assert settings(name)["epochs"] >= 20
    assert recipes()[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining(name: str):
    found = settings(name)
    size, patch, epochs = re.fullmatch(r".*pretrain_([a-z]+)(\d+)_(\d+)", name).groups()
    assert found["model"] == f"mae_vit_{size}_patch{patch}" and parse_name(found["model"])
    assert (found["epochs"], found["batch_size"], found["warmup_epochs"]) == (int(epochs), 1024, 40)
    assert (found["base_lr"], found["weight_decay"], found["decoder_depth"]) == (1.5e-4, 0.05, 8)
    method = found["mask_ratio"], found["gamma"], found["beta"]
    assert method == ((0.75, 0, None) if name.startswith("mae") else (0.85, 0.6, 26))


@pytest.mark.parametrize(
    ("size", "epochs", "base_lr", "layer_decay", "drop_path"),
    [("base", 100, 5e-4, 0.65, 0.1), ("large", 50, 1e-3, 0.75, 0.2), ("huge", 50, 1e-3, 0.75, 0.3)],
)
def test_tuning(size: str, epochs: int, base_lr: float, layer_decay: float, drop_path: float):
    found = settings(f"finetune_{size}")
    assert (found["epochs"], found["base_lr"]) == (epochs, base_lr)
    assert (found["layer_decay"], found["drop_path"], found["batch_size"]) == (layer_decay, drop_path, 1024)
    probe = settings(f"linear_probe_{size}")
    assert (probe["epochs"], probe["batch_size"]) == (90 if size == "base" else 50, 16384)
    assert (probe["base_lr"], probe["warmup_epochs"], probe["pool"]) == (0.1, 10, "token")
