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
    "pretrain": "pretrain", "mae_pretrain": "pretrain", "cross_pretrain": "pretrain", "demo": "pretrain",
    "demo_photographs": "pretrain",
    "maskfeat_pretrain": "pretrain",
    "finetune": "finetune", "maskfeat_finetune": "finetune",
    "simmim_pretrain_swin": "pretrain", "simmim_pretrain_swinv2": "pretrain", "simmim_pretrain_vit": "pretrain",
    "simmim_finetune_swin": "finetune",
    "beit_pretrain": "pretrain", "beit_finetune": "finetune",
    "cae_pretrain": "pretrain", "cae_finetune": "finetune",
}  # fmt: skip
DEMO = ("demo", "demo_photographs")
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
    given = ["--out", "o"] if name in DEMO else ["--data", "d", "--out", "o"]
    arguments = [command, "--config", str(recipes()[name]), *given]
    parsed = build_parser(arguments).parse_args(arguments)
    return vars(parsed[command])


def test_all_are_known_here():
    assert {*recipes()} >= {*PRETRAINING, *TUNING, *DEMO}


@pytest.mark.parametrize("name", [*PRETRAINING, *TUNING, *DEMO])
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


MASKFEAT = [f"maskfeat_pretrain_{size}_{epochs}" for size in ("base16", "large16") for epochs in (300, 1600)]


@pytest.mark.parametrize("name", MASKFEAT)
def test_maskfeat_pretraining(name: str):
    found, head = settings(name), recipes()[name].read_text()
    size, epochs = re.fullmatch(r"maskfeat_pretrain_([a-z]+)16_(\d+)", name).groups()
    assert found["model"] == f"maskfeat_vit_{size}_patch16" and found["epochs"] == int(epochs)
    # SlowFast's configs/masked_ssl/in1k_VIT_{B,L}_MaskFeat_PT.yaml.
    assert (found["base_lr"], found["min_lr"], found["warmup_epochs"]) == (2e-4, 1e-6, 30)
    assert (found["weight_decay"], found["betas"], found["clip_grad"]) == (0.05, (0.9, 0.999), 0.02)
    assert (found["crop_scale"], found["mask_ratio"], found["cell_size"]) == ((0.5, 1.0), 0.4, 8)
    published = re.search(r"^# Published: ([\d.]+) % top-1", head, re.M)
    assert (published and float(published[1])) == {"base1600": 84.0, "large1600": 85.7}.get(size + epochs)


@pytest.mark.parametrize(
    ("size", "epochs", "warmup_epochs", "layer_decay"), [("base", 100, 20, 0.65), ("large", 50, 5, 0.75)]
)
def test_maskfeat_tuning(size: str, epochs: int, warmup_epochs: int, layer_decay: float):
    found = settings(f"maskfeat_finetune_{size}")
    assert (found["epochs"], found["warmup_epochs"], found["layer_decay"]) == (epochs, warmup_epochs, layer_decay)
    # The configurations' 2e-3 is for 512 images, and 1e-3 for 256.
    assert (found["base_lr"], found["min_lr"], found["drop_path"], found["weight_decay"]) == (1e-3, 1e-6, 0.1, 0.05)


@pytest.mark.parametrize(
    ("name", "model", "published"),
    [
        ("swin_base_100", "swin_base_window6", "82.8"),
        ("swin_base_800", "swin_base_window6", "84.0"),
        ("swin_large_800", "swin_large_window12", "85.4"),
        ("swinv2_huge_800", "swinv2_huge_window12", "85.7"),
        ("vit_base16_800", "vit_base_patch16", "83.8"),
    ],
)
def test_simmim_pretraining(name: str, model: str, published: str):
    found, head = settings(f"simmim_pretrain_{name}"), recipes()[f"simmim_pretrain_{name}"].read_text()
    assert found["model"] == f"simmim_{model}" and found["epochs"] == int(name.rpartition("_")[2])
    # Stated for 512 images.
    assert found["base_lr"] * 512 / 256 == pytest.approx(2e-4 if found["epochs"] == 100 else 1e-4)
    assert (found["weight_decay"], found["betas"], found["clip_grad"]) == (0.05, (0.9, 0.999), 5.0)
    assert (found["warmup_epochs"], found["crop_scale"]) == (10, (0.67, 1.0))
    assert (found["mask_ratio"], found["mask_unit"]) == (0.6, 32)
    assert found["img_size"] == (224 if model.startswith("vit") else 192)
    assert f"{published} % top-1 on ImageNet-1k after fine-tuning" in head


@pytest.mark.parametrize(("size", "layer_decay", "drop_path"), [("base", 0.8, 0.1), ("large", 0.7, 0.2)])
def test_simmim_tuning(size: str, layer_decay: float, drop_path: float):
    found = settings(f"simmim_finetune_swin_{size}")
    assert (found["epochs"], found["warmup_epochs"], found["img_size"]) == (100, 20, 224)
    assert found["base_lr"] * 512 / 256 == pytest.approx(1.25e-3)
    assert (found["layer_decay"], found["drop_path"]) == (layer_decay, drop_path)


@pytest.mark.parametrize(("size", "scale", "published"), [("base", 0.1, "83.2"), ("large", 1e-5, "85.2")])
def test_beit_pretraining(size: str, scale: float, published: str):
    name = f"beit_pretrain_{size}16_800"
    found, head = settings(name), recipes()[name].read_text()
    assert found["model"] == f"beit_vit_{size}_patch16" and found["epochs"] == 800
    assert found["base_lr"] * found["batch_size"] / 256 == pytest.approx(1.5e-3)
    assert (found["min_lr"], found["warmup_epochs"], found["clip_grad"]) == (1e-5, 10, 3.0)
    assert (found["weight_decay"], found["betas"], found["crop_scale"]) == (0.05, (0.9, 0.999), (0.08, 1.0))
    assert (round(196 * found["mask_ratio"]), found["smallest_block"]) == (75, 16)
    assert (found["drop_path"], found["layer_scale"]) == (0.1, scale)
    assert f"# Published: {published} % top-1" in head


def test_beit_tuning():
    found = settings("beit_finetune_base")
    assert (found["epochs"], found["warmup_epochs"], found["layer_decay"]) == (100, 20, 0.65)
    assert (found["base_lr"] * found["batch_size"] / 256, found["drop_path"]) == (4e-3, 0.1)


@pytest.mark.parametrize(
    ("size", "epochs", "warmup_epochs", "scale"), [("base", 800, 20, 0.1), ("large", 1600, 40, 1e-5)]
)
def test_cae_pretraining(size: str, epochs: int, warmup_epochs: int, scale: float):
    found = settings(f"cae_pretrain_{size}16_{epochs}")
    assert found["model"] == f"cae_vit_{size}_patch16" and found["epochs"] == epochs
    assert found["base_lr"] * found["batch_size"] / 256 == pytest.approx(1.5e-3)
    assert (found["warmup_epochs"], found["clip_grad"], found["weight_decay"]) == (warmup_epochs, 3.0, 0.05)
    assert (round(196 * found["mask_ratio"]), found["smallest_block"], found["alignment"]) == (98, 16, 2.0)
    assert (found["regressor_depth"], found["decoder_depth"]) == (4, 4)
    assert (found["drop_path"], found["layer_scale"]) == (0.1, scale)


@pytest.mark.parametrize(
    ("size", "epochs", "rate", "layer_decay", "drop_path"),
    [("base", 100, 8e-3, 0.65, 0.1), ("large", 50, 2e-3, 0.75, 0.2)],
)
def test_cae_tuning(size: str, epochs: int, rate: float, layer_decay: float, drop_path: float):
    found = settings(f"cae_finetune_{size}")
    assert (found["epochs"], found["layer_decay"], found["drop_path"]) == (epochs, layer_decay, drop_path)
    assert found["base_lr"] * found["batch_size"] / 256 == pytest.approx(rate)


@pytest.mark.parametrize(("size", "width"), [("base", 768), ("large", 1024)])
def test_segmentation(size: str, width: int):
    found = settings(f"segment_{size}")
    # 160,000 steps of 16 of ADE20K's 20,210 images, 1,500 of them warm-up, at 1e-4.
    steps = found["epochs"] * (20_210 // 16)
    assert steps == pytest.approx(160_000, rel=0.005) and found["batch_size"] == 16
    assert found["warmup_epochs"] * (20_210 // 16) == pytest.approx(1500, rel=0.005)
    assert found["base_lr"] * 16 / 256 == pytest.approx(1e-4) and found["weight_decay"] == 0.05
    assert (found["img_size"], found["head_width"], found["aux_weight"]) == (512, width, 0.4)
    assert int(found["img_size"] * found["stride"]) == 341 and found["reduce_zero_label"]
    if size == "base":
        assert (found["layer_decay"], found["drop_path"]) == (0.65, 0.1)


@pytest.mark.parametrize(("size", "layer_decay", "drop_path"), [("base", 0.7, 0.1), ("large", 0.8, 0.4)])
def test_detection(size: str, layer_decay: float, drop_path: float):
    found = settings(f"detect_{size}")
    # 184,375 steps of 64 of COCO's 117,266 images that show an object, 250 of them warm-up, at 1e-4.
    steps = found["epochs"] * (117_266 // 64)
    assert steps == pytest.approx(184_375, rel=0.01) and found["batch_size"] == 64
    assert found["warmup_epochs"] * (117_266 // 64) == pytest.approx(250, rel=0.01)
    assert found["base_lr"] * 64 / 256 == pytest.approx(1e-4) and found["weight_decay"] == 0.1
    drops = [250 + drop * (184_375 - 250) for drop in found["lr_drops"]]
    assert drops == pytest.approx([163_889, 177_546], rel=0.001)
    assert (found["layer_decay"], found["drop_path"]) == (layer_decay, drop_path)
    assert (found["img_size"], found["window_size"], found["global_blocks"]) == (1024, 14, 4)
