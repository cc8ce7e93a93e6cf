"""How large a study is: the model, the data and the schedules that its cells are run with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from efficient_mae.errors import InputError
from efficient_mae.methods import MethodConfig
from efficient_mae.recipes import recipe_settings, recipes
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.studies import POOLED, PROBE, Study
from efficient_mae.study.transfer import SIZES
from efficient_mae.tasks.pretrain_config import PretrainConfig, build_model

# Over settings, so that those of runs of other lengths are the same.
_NO_LENGTH = {"epochs": None, "warmup_epochs": None}


@dataclass(frozen=True)
class Preset:
    """A size of study.

    Attributes:
        summary: one line.
        pretrain: settings of `emae pretrain` that its cells share as far as their methods have them, the model's name
            without that of the method; None takes each cell's own recipe.
        others: settings of the other commands that its cells need, by name: what judges them, and what is made
            beforehand; a judge without any isn't asked. The paper's takes the recipe that goes with the cell's.
        seeds: runs of each cell, unless told otherwise.
        labels: labelled images that judges see, spread over the data; None for all.
        images: in the training data that it is made for, where none are named (`emae study --list`).
        rates: base learning rates of methods where these are compared, of those that have one of their own.
    """

    name: str
    summary: str
    pretrain: Mapping[str, Any] | None
    others: Mapping[str, Mapping[str, Any]]
    seeds: int
    labels: int | None
    images: int
    rates: Mapping[str, float] = field(default_factory=dict)

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
        base = SIZES[self.name].pretrain if cell.transferred else self.pretrain
        model = f"{cell.method}_{base['model']}"
        known = {one.name for one in fields(PretrainConfig.of(model))}
        shared = {name: value for name, value in base.items() if name in known}
        if cell.compared and cell.method in self.rates:
            shared["base_lr"] = self.rates[cell.method]
        return {**shared, "model": model, **cell.settings}

    def directory(self, cell: Cell) -> str:
        """The name under which its runs are kept: that of the first cell that this preset runs alike."""
        if not cell.pretrained:
            return cell.name
        known = [
            (other.name, self.pretraining(other), other.measure if other.as_long_as else None)
            for other in CELLS.values()
            if other.paper in (None, self.is_paper)
            and (other.pretrained, other.transferred) == (True, cell.transferred)
        ]
        settings = self.pretraining(cell)
        alike = [name for name, theirs, measure in known if measure is None and theirs == settings]
        # What lasts as long as another is given its epochs later, and two with the same budget the same.
        settled = settings | _NO_LENGTH
        alike += [
            name for name, theirs, measure in known if measure == cell.measure and theirs | _NO_LENGTH == settled
        ]
        return alike[0] if alike else cell.name

    def judges_of(self, study: Study) -> tuple[str, ...]:
        """What judges a study's runs: of its judges those that this preset has settings for; the paper's own
        fine-tunes instead of probing."""
        if study.transfers or PROBE not in study.judges:
            return study.judges
        if self.is_paper:
            return ("finetune", *(one for one in study.judges if one not in {PROBE, *POOLED, "finetune"}))
        return tuple(one for one in study.judges if one in {*self.others, *POOLED})

    def settings(self, command: str, cell: Cell) -> dict[str, Any]:
        """The settings of another command that a cell needs, but for data, weights, directory and seed."""
        if not self.is_paper:
            known = SIZES[self.name].judges if cell.transferred else self.others
            return dict(known.get(command, {}))
        size = next(size for size in ("base", "large", "huge") if f"_{size}" in cell.recipe)
        recipe = f"{command.replace('-', '_')}_{size}"
        return recipe_settings(recipe) if recipe in recipes() else {}


def pretrained_config(settings: Mapping[str, Any]) -> MethodConfig:
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
_FEW = {"precision": "fp32", "num_workers": 0}
# A garment lies on a plain ground. Of whole pictures the patches far from anything visible are ground, and easy; once
# normalised they are nothing at all. So crops are small parts of the garment, and pixels stay as they are: then the
# paper's question can be asked, what becomes of patches that are hard because they are far.
_ZOOM = {"in_chans": 1, "norm_pix_loss": False, "crop_scale": (0.1, 0.3)}
# What the other methods need to fit so few pixels and blocks, each as near to what it is published with as may be:
# SimMIM hides squares of 4 pixels, of which an image has 49 here and 36 there; MaskFeat counts a patch's gradients as
# one, since half a patch would be less than a pixel of the photograph; CAE's regressor has a decoder's one block; and
# two blocks are too few for one to be skipped.
_GUESTS = {"mask_unit": 4, "cell_size": 4, "regressor_depth": 1, "drop_path": 0.0}
# Of 1e-3, 2e-3 and 4e-3 the one with the least training loss after 40 steps with seed 0, for every method but
# MaskFeat, of which the losses lay within 1 %.
_RATES: dict[str, float] = dict.fromkeys(("mae", "simmim", "maskfeat", "beit", "cae"), 4e-3)
# A word a patch, learned from the crops that the methods see.
_TOKENIZER = {"in_chans": 1, "crop_scale": _ZOOM["crop_scale"], "stride": 4, "num_blocks": 1, "panel_every": 1000}
_WORDS = {**_TOKENIZER, "img_size": 28, "width": 64, "vocab_size": 256, "epochs": 4, "batch_size": 128}

# What judges 28 x 28 pixels on few labels on a CPU, and makes words of them.
_ON_FEW = {"batch_size": 50, "epochs": 15, "num_workers": 0}
_SMALL = {
    "finetune": {**_LIGHT_FINETUNE, **_ON_FEW, "base_lr": 5e-3},
    "linear-probe": {**_ON_FEW, "base_lr": 10.0, "crop_scale": (0.6, 1.0), "eval_every": 1000},
    "knn": {},
    "probe": _FEW,
    "tokenizer": {**_WORDS, "num_workers": 0},
}

_MAIN = {
    "model": "vit_tiny_patch4",
    "in_chans": 1,
    "img_size": 28,
    "depth": 4,
    "decoder_depth": 2,
    "decoder_embed_dim": 128,
    # As benchmarks/pilot.py found, without a look at held-out images.
    "crop_scale": (0.2, 1.0),
    "norm_pix_loss": False,
    "base_lr": 2e-3,
    "epochs": 3,
    "warmup_epochs": 0.3,
    "batch_size": 128,
    "precision": "bf16",
    "num_workers": 0,
    "panel_every": 1000,
    **_GUESTS,
    "regressor_depth": 2,
}
_MAIN_OTHERS = {"probe": _FEW, "tokenizer": {**_WORDS, "crop_scale": _MAIN["crop_scale"], "num_workers": 0}}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "seconds: 5 x 5 patches, one block; shows that everything runs",
            {
                **_ZOOM,
                "model": "vit_tiny_patch4",
                "img_size": 20,
                "depth": 1,
                "decoder_depth": 1,
                "decoder_embed_dim": 32,
                "epochs": 1,
                "batch_size": 16,
                "panel_every": 1000,
                **_GUESTS,
                **_FEW,
            },
            {
                "finetune": {**_LIGHT_FINETUNE, "epochs": 1, "batch_size": 16, **_FEW},
                "linear-probe": {"epochs": 1, "batch_size": 16, "crop_scale": (0.6, 1.0), **_FEW},
                "probe": {"labels": 32, "subsets": 2, "folds": 2, "k": 5, **_FEW},
                "knn": {},
                "tokenizer": {**_TOKENIZER, "img_size": 20, "width": 8, "vocab_size": 16, "epochs": 1, **_FEW},
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
                "model": "vit_tiny_patch4",
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
                **_GUESTS,
            },
            _SMALL,
            seeds=3,
            labels=1000,
            images=10_000,
            rates=_RATES,
        ),
        Preset(
            "main",
            "the main study: 7 x 7 patches, 4 blocks, 180,000 samples of fashion-mnist; a cell takes minutes",
            _MAIN,
            _MAIN_OTHERS,
            seeds=5,
            labels=1000,
            images=60_000,
            # As benchmarks/rates.py found, on the images that MAE's was found on.
            rates={"simmim": 8e-3, "maskfeat": 4e-3, "beit": 1.6e-2},
        ),
        Preset(
            "main14",
            "the same with the paper's masks: 14 x 14 patches; a cell takes 20 minutes",
            {**_MAIN, "model": "vit_tiny_patch2", "cell_size": 2},
            {**_MAIN_OTHERS, "tokenizer": {**_MAIN_OTHERS["tokenizer"], "stride": 2}},
            seeds=8,
            labels=1000,
            images=60_000,
        ),
        Preset(
            "photographs",
            "2 cores: 14 x 14 patches in RGB as in the paper, 2 blocks, photographs-sample; Figures 2 to 4",
            {
                "model": "vit_tiny_patch8",
                "img_size": 112,
                "depth": 2,
                "decoder_depth": 1,
                "decoder_embed_dim": 96,
                "epochs": 180,
                "batch_size": 48,
                "repeats": 4,
                "base_lr": 4e-3,
                "warmup_epochs": 18,
                "num_workers": 0,
                "panel_every": 1000,
                **_GUESTS,
                "mask_unit": 16,
            },
            {"probe": _FEW},
            seeds=3,
            labels=1000,
            images=48,
        ),
        Preset(
            "gpu",
            "one large GPU: 14 x 14 patches as in the paper, 6 blocks, fashion-mnist",
            {
                **_ZOOM,
                "model": "vit_tiny_patch2",
                "img_size": 28,
                "depth": 6,
                "decoder_depth": 2,
                "decoder_embed_dim": 128,
                "epochs": 8,
                "batch_size": 512,
                "base_lr": 1e-3,
                "warmup_epochs": 1.0,
                "panel_every": 1000,
                **_GUESTS,
                "cell_size": 2,
                "regressor_depth": 2,
            },
            {
                "finetune": {**_LIGHT_FINETUNE, "epochs": 3, "batch_size": 256, "base_lr": 1e-3},
                "linear-probe": {"epochs": 10, "batch_size": 256, "base_lr": 10.0, "crop_scale": (0.6, 1.0)},
                "probe": {},
                "knn": {},
                "tokenizer": {**_WORDS, "stride": 2, "batch_size": 512},
            },
            seeds=3,
            labels=None,
            images=60_000,
        ),
        Preset(
            "paper",
            "the paper's recipes, ViT-L/16 on ImageNet-1k (give it as --data); days on 8 large GPUs",
            None,
            {},
            seeds=1,
            labels=None,
            images=1_281_167,
        ),
    )
}
