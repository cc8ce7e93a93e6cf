"""A trained model from wherever it lies: a run, a checkpoint, an export, timm, transformers, an original file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from efficient_mae.backbones import Backbone, Beit
from efficient_mae.data import default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import read_header
from efficient_mae.engine.storage.checksums import refuse_damage
from efficient_mae.errors import InputError
from efficient_mae.interop.authors.mae import build
from efficient_mae.interop.authors.readers import reader_of
from efficient_mae.interop.described import (
    TIMM,
    TIMM_FOLDER,
    is_timm_folder,
    read_hf_vit,
    read_timm_cached,
    read_timm_folder,
)
from efficient_mae.interop.files import Trained, encoder_names, find_weights, load_own, read_metadata
from efficient_mae.interop.foreign_files import SUFFIXES, read_tensors
from efficient_mae.interop.headers import (
    ImageStatistics,
    early_statistics,
    foreign,
    is_own,
    read_own_header,
    read_statistics,
)
from efficient_mae.interop.hf.vit_mae import HF_CLASSES, hf_kind, hf_statistics, load_hf_folder
from efficient_mae.interop.state_dicts import plain_vit
from efficient_mae.methods import Method, MethodConfig, backbone_of
from efficient_mae.methods.tokens import TokenMethod


def load(path: str | Path) -> Method | Backbone:
    """A trained model, in evaluation mode. Nothing in a file is ever run.

    Args:
        path: a run directory (its last checkpoint), a checkpoint, exported weights; `timm:NAME`, timm's weights in
            the local cache; a folder of timm's (also as `local-dir:FOLDER`) or of transformers' (ViTMAE, BEiT,
            Swin, ViT, DINOv2); a `.safetensors` or `.pth` file of a plain ViT, the original MAE's for one, whoever
            wrapped it, or SimMIM's or BEiT's own.

    Returns:
        The whole model, or the encoder alone if the file holds no decoder.

    Raises:
        InputError: nothing there, a file of another kind, or weights of another architecture.
    """
    return read_trained(path).model


@torch_seeded(0)
def read_trained(path: str | Path) -> Trained:
    """As :func:`load`, with how its images are normalised and what lay beside it."""
    file = _file(path)
    if file is not None:
        refuse_damage(file.parent, file.name)
    if file is not None and is_own(file):
        shapes = read_header(file)[1]
        heads = shapes.keys() - encoder_names(read_own_header(file), shapes).values()
        left_out = {name: shapes[name].numel() for name in shapes if name in heads}
        trained = Trained(load_own(file), read_statistics(file), left_out)
    else:
        trained = _read_foreign(path, file)
    trained.model.eval()
    return trained


def load_whole(path: str | Path) -> Method:
    """As :func:`load`, where more than the encoder is needed.

    Raises:
        InputError: also when the file holds an encoder alone.
    """
    model = load(path)
    if not isinstance(model, Method):
        raise InputError(f"{path}: holds an encoder alone, and a decoder is needed; give a run of emae pretrain")
    return model


def load_config(path: str | Path) -> MethodConfig:
    """What a trained model is made of; of this software's own files, without reading their weights.

    Raises:
        InputError: as :func:`load_whole`.
    """
    own = _own_file(path)
    return load_whole(path).config if own is None else read_metadata(own)[0]


@dataclass(frozen=True)
class Description:
    """What somebody's weights are.

    Attributes:
        kind: who described them, in words.
        model: its config, of a whole one, or the encoder if there is no more.
        statistics: of its images.
        taken: number of parameters that are read; the table of positions counts as one of them.
        left_out: what lies beside them, a head for one: number of parameters by name.
    """

    kind: str
    model: MethodConfig | Backbone
    statistics: ImageStatistics
    taken: int
    left_out: Mapping[str, int]


def describe_weights(path: str | Path) -> Description:
    """What is at a path; of this software's own whole models without reading their weights.

    Raises:
        InputError: as :func:`load`.
    """
    own, kind = _own_file(path), _kind(path)
    if own is not None and read_own_header(own).method is not None:
        taken = sum(shape.numel() for shape in read_header(own)[1].values())
        return Description(kind, load_config(path), load_statistics(path), taken, {})
    trained = read_trained(path)
    model = trained.model.config if isinstance(trained.model, Method) else trained.model
    taken = sum(value.numel() for value in trained.model.state_dict().values())
    return Description(kind, model, trained.statistics, taken, trained.left_out)


def _kind(path: str | Path) -> str:
    place = _folder(path)
    if str(path).startswith(TIMM):
        return "timm's, in the local cache"
    if (model_type := hf_kind(place)) is not None:
        return f"a folder of transformers', model_type {model_type}"
    if (own := _own_file(path)) is None:
        return "a folder of timm's" if is_timm_folder(place) else "a file of another software"
    header = read_own_header(own)
    if header.head is not None:
        return f"a classifier of this software, of {len(header.head.classes)} classes"
    if header.heads is not None:
        return f"what emae {header.heads.task} trained, of {len(header.heads.classes)} classes"
    return "an encoder of this software" if header.method is None else f"a model of this software, by {header.method}"


def load_statistics(path: str | Path) -> ImageStatistics:
    """How the images of a trained model are normalised.

    timm's and transformers' weights say so in their configs. Without one, and for an original `.pth` of MAE: by
    ImageNet's statistics for 3 channels, by 0.5 and 0.5 for another number and for BEiT's files.

    Raises:
        InputError: as :func:`load`.
    """
    own = _own_file(path)
    return read_trained(path).statistics if own is None else read_statistics(own)


def _folder(path: str | Path) -> Path:
    return Path(os.path.expanduser(str(path).removeprefix(TIMM_FOLDER)))  # noqa: PTH111 - pathlib fails on `~nobody`


def _file(path: str | Path) -> Path | None:
    """The safetensors file, or sharded folder, that a path stands for; None of what others describe or pickled."""
    place = _folder(path)
    if str(path).startswith(TIMM) or hf_kind(place) is not None or _was_pickled(place):
        return None
    try:
        return find_weights(place)
    except InputError:
        if is_timm_folder(place):
            return None
        raise


def _own_file(path: str | Path) -> Path | None:
    """The same if this software described the model in it."""
    file = _file(path)
    return file if file is not None and is_own(file) else None


def _was_pickled(place: Path) -> bool:
    return place.suffix in SUFFIXES and not place.is_dir()


def _read_foreign(path: str | Path, file: Path | None) -> Trained:
    place = _folder(path)
    if str(path).startswith(TIMM):
        return read_timm_cached(str(path).removeprefix(TIMM))
    if (kind := hf_kind(place)) in HF_CLASSES:
        model = load_hf_folder(place)
        return Trained(model, hf_statistics(place, backbone_of(model).in_chans))
    if kind is not None:
        return read_hf_vit(place)
    if is_timm_folder(place):
        return read_timm_folder(place)
    file = file or place
    if file.is_dir():
        raise foreign(file)
    read = read_tensors(file)
    if found := reader_of(read.tensors):
        method, reader = found
        model = reader(file, read.tensors)
        if method == "beit" and isinstance(model, Beit):  # the encoder alone
            half = (0.5,) * model.in_chans
            return Trained(model, ImageStatistics(half, half), read.left_out)
    else:
        read = plain_vit(read, file)
        model = build(read, file)
    if isinstance(model, TokenMethod):
        return Trained(model, ImageStatistics(model.config.mean, model.config.std), read.left_out)
    early = None if _was_pickled(file) else early_statistics(file)
    statistics = early or ImageStatistics(*default_mean_std(backbone_of(model).in_chans))
    return Trained(model, statistics, read.left_out)
