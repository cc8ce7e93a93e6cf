"""How large a study is: the model, the data and the schedules that its cells are run with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from efficient_mae.errors import InputError
from efficient_mae.methods import MethodConfig
from efficient_mae.recipes import recipe_settings
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.tasks.pretrain_config import PretrainConfig, build_model


@dataclass(frozen=True)
class Preset:
    """A size of study.

    Attributes:
        summary: one line.
        pretrain: settings of `emae pretrain` that its cells share; None takes each cell's own recipe.
        finetune: settings of `emae finetune`, or None for the recipe that goes with the cell's.
        seeds: runs of each cell, unless told otherwise.
        labels: labelled images that fine-tuning sees, spread over the data; None for all.
        images: in the training data that it is made for, where none are named (`emae study --list`).
    """

    name: str
    summary: str
    pretrain: Mapping[str, Any] | None
    finetune: Mapping[str, Any] | None
    seeds: int
    labels: int | None
    images: int

    @property
    def is_paper(self) -> bool:
        """Its cells are the paper's own."""
        return self.pretrain is None

    def gpus(self, device: str) -> int:
        """GPUs that each run takes: all of the machine's for the paper's own, unless one is named."""
        return max(1, torch.cuda.device_count()) if self.is_paper and device == "auto" else 1

    def pretraining(self, cell: Cell) -> dict[str, Any]:
        """The settings of a cell's pre-training, but for data, directory and seed."""
        if self.pretrain is None:
            return {**recipe_settings(cell.recipe), **cell.settings}
        return {**self.pretrain, "epochs": self.pretrain["epochs"] * cell.length, **cell.settings}

    def directory(self, cell: Cell) -> str:
        """The name under which its runs are kept: that of the first cell that this preset runs alike."""
        settings = self.pretraining(cell), self.finetuning(cell)
        return next(
            other.name
            for other in CELLS.values()
            if (self.is_paper or not other.paper_only)
            and (self.pretraining(other), self.finetuning(other)) == settings
        )

    def finetuning(self, cell: Cell) -> dict[str, Any]:
        """The settings of its fine-tuning, but for data, weights, directory and seed."""
        if self.finetune is not None:
            return dict(self.finetune)
        size = next(size for size in ("base", "large", "huge") if f"_{size}" in cell.recipe)
        return recipe_settings(f"finetune_{size}")


def model_config(settings: Mapping[str, Any]) -> MethodConfig:
    """The model that these settings of `emae pretrain` make."""
    with torch.device("meta"):
        return build_model(PretrainConfig(data="", out="", **settings)).config


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none; the known are named.
    """
    if name not in PRESETS:
        raise InputError(f"preset={name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


# Few images of few pixels: crops and flips alone, and all layers at the same rate.
_LIGHT_FINETUNE = {
    "layer_decay": 1.0,
    "drop_path": 0.0,
    "auto_augment": None,
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 0.0,
    "crop_scale": (0.6, 1.0),
    "eval_every": 1000,
}
# A garment lies on a plain ground. Of whole pictures the patches far from anything visible are ground, and easy; once
# normalised they are nothing at all. So crops are small parts of the garment, and pixels stay as they are: then the
# paper's question can be asked, what becomes of patches that are hard because they are far.
_ZOOM = {"in_chans": 1, "norm_pix_loss": False, "crop_scale": (0.1, 0.3)}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "seconds: 5 x 5 patches, one block; shows that everything runs",
            {
                **_ZOOM,
                "model": "mae_vit_tiny_patch4",
                "img_size": 20,
                "depth": 1,
                "decoder_depth": 1,
                "decoder_embed_dim": 32,
                "epochs": 1,
                "batch_size": 16,
                "precision": "fp32",
                "num_workers": 0,
                "panel_every": 1000,
            },
            {
                **_LIGHT_FINETUNE,
                "epochs": 1,
                "batch_size": 16,
                "precision": "fp32",
                "num_workers": 0,
            },
            seeds=1,
            labels=32,
            images=10_000,
        ),
        Preset(
            "cpu",
            "2 cores: 7 x 7 patches, 2 blocks, fashion-mnist-sample; a cell takes minutes",
            {
                **_ZOOM,
                "model": "mae_vit_tiny_patch4",
                "img_size": 28,
                "depth": 2,
                "decoder_depth": 1,
                "decoder_embed_dim": 96,
                "epochs": 4,
                "batch_size": 128,
                "base_lr": 2e-3,
                "warmup_epochs": 0.5,
                "num_workers": 0,
                "panel_every": 1000,
            },
            {
                **_LIGHT_FINETUNE,
                "epochs": 15,
                "batch_size": 50,
                "base_lr": 5e-3,
                "num_workers": 0,
            },
            seeds=3,
            labels=1000,
            images=10_000,
        ),
        Preset(
            "gpu",
            "one large GPU: 14 x 14 patches as in the paper, 6 blocks, fashion-mnist",
            {
                **_ZOOM,
                "model": "mae_vit_tiny_patch2",
                "img_size": 28,
                "depth": 6,
                "decoder_depth": 2,
                "decoder_embed_dim": 128,
                "epochs": 8,
                "batch_size": 512,
                "base_lr": 1e-3,
                "warmup_epochs": 1.0,
                "panel_every": 1000,
            },
            {
                **_LIGHT_FINETUNE,
                "epochs": 3,
                "batch_size": 256,
                "base_lr": 1e-3,
            },
            seeds=3,
            labels=None,
            images=60_000,
        ),
        Preset(
            "paper",
            "the paper's recipes, ViT-L/16 on ImageNet-1k (give it as --data); days on 8 large GPUs",
            None,
            None,
            seeds=1,
            labels=None,
            images=1_281_167,
        ),
    )
}
