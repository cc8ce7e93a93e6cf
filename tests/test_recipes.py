"""The recipes that ship with the package: each parses, and says what its paper says."""

import re

import pytest
import torch

from efficient_mae.backbones.sizes import parse_name
from efficient_mae.bench.flops import count_gmacs
from efficient_mae.cli import build_parser
from efficient_mae.methods import create_model
from efficient_mae.recipes import recipes

COMMAND = {
    "pretrain": "pretrain",
    "mae_pretrain": "pretrain",
    "cross_pretrain": "pretrain",
    "demo": "pretrain",
    "finetune": "finetune",
}
PRETRAINING = [
    f"{prefix}pretrain_{size}_{epochs}"
    for prefix in ("", "mae_")
    for size in ("base16", "large16", "huge14")
    for epochs in (200, 800, 1600)
] + [f"cross_pretrain_{size}_800" for size in ("base16", "large16", "huge14")]
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
    assert found["model"] == f"mae_vit_{size}_patch{patch}" and parse_name(found["model"], "mae")
    assert (found["epochs"], found["batch_size"], found["warmup_epochs"]) == (int(epochs), 1024, 40)
    assert (found["base_lr"], found["weight_decay"], found["decoder_depth"]) == (1.5e-4, 0.05, 8)
    method = found["mask_ratio"], found["gamma"], found["beta"]
    assert method == ((0.75, 0, None) if name.startswith("mae") else (0.85, 0.6, 26))
    assert (found["decoder"], found["targets"]) == ("cross" if name.startswith("cross") else "self", "p2dist")


@pytest.mark.parametrize("size", ["base16", "large16", "huge14"])
def test_a_cross_decoders_head_says_what_it_computes(size: str):
    found, head = settings(f"cross_pretrain_{size}_800"), recipes()[f"cross_pretrain_{size}_800"].read_text()
    with torch.device("meta"):
        costs = [
            count_gmacs(create_model(found["model"], decoder=decoder).config, 256) for decoder in ("cross", "self")
        ]
    said = re.search(r"computes ([\d.]+) GMACs \(([\d.]+) with the paper's decoder\)", head)
    assert said and [float(number) for number in said.groups()] == pytest.approx(costs, rel=0.01)


# Top-1 after fine-tuning: Table 3, and of 200 epochs Tables 2, 4 and 9.
PUBLISHED = {
    "pretrain_base16_800": 83.5,
    "pretrain_large16_200": 84.6,
    "pretrain_large16_800": 85.4,
    "pretrain_large16_1600": 85.7,
    "pretrain_huge14_800": 86.5,
    "mae_pretrain_base16_1600": 83.6,
    "mae_pretrain_large16_200": 84.6,
    "mae_pretrain_large16_800": 85.4,
    "mae_pretrain_large16_1600": 85.9,
    "mae_pretrain_huge14_1600": 86.9,
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_its_head_says_what_is_published(name: str):
    found = re.search(r"^# Published: ([\d.]+) % top-1", recipes()[name].read_text(), re.M)
    assert (found and float(found[1])) == PUBLISHED.get(name)


# Of He et al. 2022, Table 9 (drop path by size) and Table 10; what differs there is from MAE's instructions.
TABLES = {
    "finetune": {"base_lr": 1e-3, "layer_decay": 0.75, "random_erasing": 0, "weight_decay": 0.05, "warmup_epochs": 5},
    "linear_probe": {"epochs": 90, "base_lr": 0.1, "batch_size": 16384, "warmup_epochs": 10},
}
DROP_PATH = {"base": 0.1, "large": 0.1, "huge": 0.2}


@pytest.mark.parametrize("name", TUNING)
def test_what_no_table_has_is_not_cited_from_one(name: str):
    task, size = name.rsplit("_", 1)
    table = TABLES[task] | ({"drop_path": DROP_PATH[size]} if task == "finetune" else {})
    found, head = settings(name), recipes()[name].read_text()
    differing = [setting for setting, value in table.items() if found[setting] != value]
    assert ("MAE's published instructions" in head) == bool(differing)
    for setting in differing:
        assert setting.replace("_", " ") in head.replace("_", " ").split("\nepochs")[0]


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
