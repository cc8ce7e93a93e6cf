"""Weights beside a config of another library: timm's cached ones and folders, transformers' folders of plain ViTs.

The config says what shapes don't: heads, activations, and by what images are normalised.
"""

from pathlib import Path
from typing import Any

import timm
import timm.models.vision_transformer as timm_vit
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from efficient_mae.backbones import Backbone, VisionTransformer
from efficient_mae.backbones.patches import as_pair
from efficient_mae.errors import InputError, did_you_mean
from efficient_mae.interop.authors.mae import build
from efficient_mae.interop.files import Trained
from efficient_mae.interop.headers import stated_statistics
from efficient_mae.interop.hf.parts import LARGEST_EPS, read_json
from efficient_mae.interop.hf.vit_mae import HF_CLASSES, hf_statistics
from efficient_mae.interop.state_dicts import read_state_dict
from efficient_mae.methods import Method, backbone_of

# As `--weights` names timm's models in the local cache, and as timm names its folders.
TIMM, TIMM_FOLDER = "timm:", "local-dir:"

# Files of weights, the first that is there is taken.
_FILES = ("model.safetensors", "pytorch_model.bin")

# transformers' models that are plain ViTs.
_PLAIN = ("vit", "dinov2")

# Arguments of timm's VisionTransformer that leave a plain ViT one, or whose weights show by their names.
_HARMLESS = {*VisionTransformer.ARGUMENTS, "num_classes", "global_pool", "class_token", "fc_norm", "init_values",
             "no_embed_class", "reg_tokens", "dynamic_img_size", "dynamic_img_pad", "drop_rate",
             "drop_path_rate"}  # fmt: skip


def read_timm_cached(name: str) -> Trained:
    """timm's weights of a name, `vit_base_patch16_224.mae`, from the local cache; nothing is downloaded.

    Raises:
        InputError: no such name, weights that aren't in the cache, or no plain ViT.
    """
    architecture, _, tag = name.partition(".")
    where = f"{TIMM}{name}"
    if not timm.is_model(architecture):
        raise InputError(f"{where}: no model of timm's{did_you_mean(architecture, timm.list_models(), TIMM)}")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        config = None
    if config is None or (tag and config.tag != tag):
        raise InputError(
            f"{where}: timm has no weights of that name{did_you_mean(name, timm.list_pretrained(), TIMM)}"
        )
    repository, names = config.hf_hub_id or "", [config.hf_hub_filename] if config.hf_hub_filename else _FILES
    cached = [try_to_load_from_cache(repository, file) for file in names] if repository else []
    file = next((Path(path) for path in cached if isinstance(path, str)), None)
    if file is None:
        raise InputError(
            f"{where}: not in the local cache, and nothing is downloaded here; "
            f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\" fetches it"
        )
    return _timm(where, file, architecture, {}, {"mean": config.mean, "std": config.std})


def is_timm_folder(folder: Path) -> bool:
    """Whether a path is a folder in timm's layout."""
    return "architecture" in read_json(folder / "config.json")


def read_timm_folder(folder: Path) -> Trained:
    """The encoder in a folder of timm's, such as `timm.create_model("local-dir:FOLDER")` reads.

    Raises:
        InputError: no weights in it, or no plain ViT.
    """
    config = read_json(folder / "config.json")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise InputError(f"{folder / 'config.json'}: model_args={arguments!r}: must be settings by name")
    normalised = config.get("pretrained_cfg", config)
    return _timm(
        str(folder),
        _weights_in(folder),
        str(config["architecture"]),
        arguments,
        normalised if isinstance(normalised, dict) else {},
    )


def _timm(where: str, file: Path, architecture: str, arguments: dict[str, Any], images: dict[str, Any]) -> Trained:
    """
    Args:
        where: to name in errors.
        arguments: of the model, other than the architecture's own.
        images: `mean` and `std`.
    """
    if odd := sorted(arguments.keys() - _HARMLESS):
        raise InputError(f"{where}: {odd[0]}={arguments[odd[0]]!r}: a ViT of another architecture than the plain one")
    try:
        with torch.device("meta"):
            vit = timm.create_model(architecture, pretrained=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: timm makes no {architecture!r} ({' '.join(str(error).split())})") from None
    if (block := _plain_block(vit)) is None:
        raise InputError(f"{where}: {architecture} is no plain ViT; what is read here has MAE's blocks")
    heads = arguments.get("num_heads", block.attn.num_heads)
    size = _size(where, "img_size", arguments.get("img_size"))
    model, left_out = _encoder(where, file, "num_heads", heads, size)
    return Trained(model, stated_statistics(images, "mean", "std", backbone_of(model).in_chans, where), left_out)


def _encoder(
    where: str, file: Path, name: str, heads: Any, size: tuple[int, int] | None
) -> tuple[Method | Backbone, dict[str, int]]:
    """The model in a file of weights, and what lies beside it; `name` is that of the config's number of heads."""
    if not isinstance(heads, int) or heads < 1:
        raise InputError(f"{where}: {name}={heads!r}: must be a number of at least 1")
    state = read_state_dict(file, size)
    return build(state, file, heads, size), state.left_out


def _size(where: str, name: str, size: Any) -> tuple[int, int] | None:
    """(height, width) that a config says, in pixels."""
    try:
        return None if size is None else as_pair(tuple(size) if isinstance(size, list) else size)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name}={size!r}: must be one number or two") from None


def _plain_block(vit: nn.Module) -> Any:
    """The first block of a ViT of timm's whose blocks compute what ours do with the same weights; None of others."""
    if type(vit) is not timm_vit.VisionTransformer or type(block := vit.blocks[0]) is not timm_vit.Block:
        return None
    found: Any = block
    exact = type(found.mlp.act) is nn.GELU and found.mlp.act.approximate == "none"
    return found if exact and found.norm1.eps <= LARGEST_EPS else None


def read_hf_vit(folder: Path) -> Trained:
    """The encoder in a folder of transformers' ViT or DINOv2; layer scale is multiplied into the maps before it.

    Raises:
        InputError: another model, no weights, or an architecture that differs from MAE's in more than its sizes.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") not in _PLAIN:
        known = " and ".join((", ".join((*HF_CLASSES, *_PLAIN[:-1])), _PLAIN[-1]))
        raise InputError(
            f"{folder}: a transformers folder of model_type {config.get('model_type')!r}; only {known} can be read"
        )
    must_be = {"hidden_act": "gelu", "qkv_bias": True, "use_swiglu_ffn": False}
    for name, needed in must_be.items():
        if config.get(name, needed) != needed:
            raise InputError(
                f"{folder}: {name}={config[name]!r}: a ViT of another architecture; MAE's has {needed!r}"
            )
    eps, heads = config.get("layer_norm_eps", 1e-12), config.get("num_attention_heads", 12)
    if not isinstance(eps, float | int) or eps > LARGEST_EPS:
        raise InputError(f"{folder}: layer_norm_eps={eps!r}: a ViT of another architecture; MAE's has 1e-6")
    size = _size(str(folder), "image_size", config.get("image_size"))
    model, left_out = _encoder(str(folder), _weights_in(folder), "num_attention_heads", heads, size)
    return Trained(model, hf_statistics(folder, backbone_of(model).in_chans), left_out)


def _weights_in(folder: Path) -> Path:
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: holds a config.json and no weights: no {' or '.join(_FILES)}")
    return file
