"""transformers' ViTMAE, both ways, encoder and decoder; and folders in its layout, of ViTMAE, Beit and Swin."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.backbones.vit import LAYER_NORM_EPS
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.durable import share
from efficient_mae.errors import InputError
from efficient_mae.interop.classifiers import Classifier
from efficient_mae.interop.files import encoder_of
from efficient_mae.interop.headers import ImageStatistics, stated_statistics
from efficient_mae.interop.hf import beit, parts, swin
from efficient_mae.interop.hf.images import save_processor
from efficient_mae.interop.timm_models import save_timm
from efficient_mae.methods import Method
from efficient_mae.methods.beit import BEiT
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder
from efficient_mae.methods.simmim import SimMIM

if TYPE_CHECKING:
    from transformers import BeitForMaskedImageModeling, SwinForMaskedImageModeling, ViTMAEForPreTraining

# transformers' classes of whole models, by the model_type of their folders.
HF_CLASSES = {
    "vit_mae": "ViTMAEForPreTraining",
    "beit": "BeitForMaskedImageModeling",
    "swin": "SwinForMaskedImageModeling",
}

# Points that P2Dist looks at (Algorithm 1), which transformers knows nothing of.
_K = 8


@torch_seeded(0)
def to_hf(
    model: Method | Backbone,
) -> "ViTMAEForPreTraining | BeitForMaskedImageModeling | SwinForMaskedImageModeling":
    """transformers' model with the weights of this one: the same loss for the same mask.

    Of MAE that is ViTMAEForPreTraining, where beta is None and gamma 0: transformers has neither, reconstructs every
    masked patch and weights them alike. Of BEiT it is BeitForMaskedImageModeling, of SimMIM
    with a Swin SwinForMaskedImageModeling.

    Args:
        model: whole; its weights are copied.

    Raises:
        InputError: an encoder alone, a method that transformers hasn't, another decoder than MAE's, images that
            aren't square, or no transformers installed.
    """
    transformers = parts.transformers_library()
    if isinstance(model, BEiT):
        return beit.to_hf(model)
    if isinstance(model, SimMIM):
        return swin.to_hf(model)
    if isinstance(model, Backbone):
        raise InputError(
            "an encoder alone, and transformers' ViTMAEForPreTraining has a decoder; give the whole model"
        )
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"a model of {model.config.method}, and transformers has models of mae, beit and simmim alone"
        )
    config = model.config
    if config.decoder != "self":
        raise InputError(
            f"decoder={config.decoder}: transformers' ViTMAEForPreTraining has MAE's decoder, self, alone; "
            "hand over the encoder, as timm's"
        )
    hf = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=parts.common_side(config.img_size, "ViTMAE"),
            patch_size=config.patch_size,
            num_channels=config.in_chans,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.embed_dim,
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=4 * config.decoder_embed_dim,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.norm_pix_loss,
            layer_norm_eps=LAYER_NORM_EPS,
        )
    )
    return parts.give_weights(model, hf, _names(config))


@torch_seeded(0)
def from_hf(
    hf: "ViTMAEForPreTraining | BeitForMaskedImageModeling | SwinForMaskedImageModeling",
    gamma: float = 0.0,
    beta: float | None = None,
) -> MaskedAutoencoder | BEiT | SimMIM:
    """The model with the weights of transformers' ViTMAE, whose mask ratio and norm_pix_loss it has, Beit or Swin.

    Args:
        hf: its weights are copied.
        gamma: of MAE, exponent of the Difficulty-Flatten Loss; 0 weights all patches alike, as transformers does.
        beta: of MAE, the decoder leaves out patches of larger P2Dist: pixels at patch size 16; None leaves out none.

    Raises:
        InputError: an architecture that differs from the method's in more than its sizes; the setting is named.
    """
    if hf.config.model_type == "beit":
        return beit.from_hf(cast(Any, hf))
    if hf.config.model_type == "swin":
        return swin.from_hf(cast(Any, hf))
    config = _our_config(hf.config, gamma, beta)
    return parts.take_weights(MaskedAutoencoder(config), hf, _names(config))


def _our_config(theirs: Any, gamma: float, beta: float | None) -> MAEConfig:
    needed = {
        "hidden_act": "gelu",
        "qkv_bias": True,
        "intermediate_size": 4 * theirs.hidden_size,
        "decoder_intermediate_size": 4 * theirs.decoder_hidden_size,
    }
    parts.check_settings(theirs, needed, "ViTMAE", "MAE")
    side = parts.square_side(theirs, "image_size")
    return MAEConfig(
        img_size=(side, side),
        patch_size=parts.square_side(theirs, "patch_size"),
        in_chans=theirs.num_channels,
        embed_dim=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        decoder_embed_dim=theirs.decoder_hidden_size,
        decoder_depth=theirs.decoder_num_hidden_layers,
        decoder_num_heads=theirs.decoder_num_attention_heads,
        mask_ratio=theirs.mask_ratio,
        gamma=gamma,
        beta=beta,
        k=_K,
        norm_pix_loss=theirs.norm_pix_loss,
    )


def _names(config: MAEConfig) -> parts.Names:
    """Of every tensor."""
    yield "cls_token", ["vit.embeddings.cls_token"]
    yield "pos_embed", ["vit.embeddings.position_embeddings"]
    yield "mask_token", ["decoder.mask_token"]
    yield "decoder_pos_embed", ["decoder.decoder_pos_embed"]
    modules = {
        "patch_embed.proj": ["vit.embeddings.patch_embeddings.projection"],
        "norm": ["vit.layernorm"],
        "decoder_embed": ["decoder.decoder_embed"],
        "decoder_norm": ["decoder.decoder_norm"],
        "decoder_pred": ["decoder.decoder_pred"],
    }
    stacks = (
        ("blocks", "vit.layers", config.depth),
        ("decoder_blocks", "decoder.decoder_layers", config.decoder_depth),
    )
    for blocks, layers, depth in stacks:
        for n in range(depth):
            block, layer = f"{blocks}.{n}", f"{layers}.{n}"
            modules |= parts.block_modules(block, layer)
    yield from parts.parameter_names(modules)


def hf_kind(path: Path) -> str | None:
    """The model_type of a folder in transformers' layout; None if it is none, or one that is timm's within."""
    found = parts.read_json(path / "config.json").get("model_type", "timm_wrapper")
    return None if found == "timm_wrapper" else str(found)


def load_hf_folder(folder: Path) -> Method | Backbone:
    """The ViTMAE, or the Beit or Swin with its mask token, in a folder of transformers' layout; runs no code in it.

    Of a ViTMAE the encoder alone if it holds no decoder.

    Raises:
        InputError: weights that don't fit its config or aren't safetensors, or no transformers installed.
    """
    kind = str(hf_kind(folder))
    transformers = parts.transformers_library()
    try:
        with parts.quiet(transformers):
            hf, info = getattr(transformers, HF_CLASSES[kind]).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    # Files made by others fail in as many ways as there are checks in transformers.
    except Exception as error:
        raise InputError(f"{folder}: transformers can't load it ({str(error).strip().splitlines()[0]})") from None
    missing = sorted(info["missing_keys"])
    decoder = {name for name in hf.state_dict() if name.startswith("decoder.")}
    if missing and set(missing) != decoder:
        raise InputError(f"{folder}: weights of another architecture, without {missing[0]}")
    if info["unexpected_keys"]:
        raise InputError(f"{folder}: weights of another architecture, with {min(info['unexpected_keys'])}")
    try:
        model = from_hf(hf)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return encoder_of(model) if missing else model


def hf_statistics(folder: Path, in_chans: int) -> ImageStatistics:
    """Mean and standard deviation in a folder's preprocessor_config.json; the usual ones if it has none.

    Raises:
        InputError: they aren't one number for each of the model's channels.
    """
    file = folder / "preprocessor_config.json"
    return stated_statistics(parts.read_json(file), "image_mean", "image_std", in_chans, str(file))


def save_hf(folder: Path, model: Method, statistics: ImageStatistics) -> None:
    """Write a folder that the class of :func:`to_hf`, `AutoModel` and `AutoImageProcessor.from_pretrained` load.

    Raises:
        InputError: as :func:`to_hf`.
        OSError: the disk is full or not writable.
    """
    transformers = parts.transformers_library()
    with parts.quiet(transformers):
        to_hf(model).save_pretrained(folder)
    save_processor(folder, model.config.img_size, statistics)
    for file in folder.glob("*.safetensors"):
        share(file)


def save_hf_classifier(folder: Path, classifier: Classifier, statistics: ImageStatistics) -> None:
    """Write a folder that transformers' `AutoModelForImageClassification` and `AutoImageProcessor` load.

    No model of transformers' own has fine-tuning's mean, norm and head: timm's within transformers' TimmWrapper does.

    Raises:
        InputError: no transformers installed.
        OSError: the disk is full or not writable.
    """
    save_timm(folder, classifier, statistics)
    file = folder / "config.json"
    # With timm's own settings of images, timm's transform would take the place of the processor.
    theirs = {name: value for name, value in parts.read_json(file).items() if name != "pretrained_cfg"}
    content = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]} | theirs
    file.write_text(json.dumps(content, indent=2) + "\n")
    save_processor(folder, classifier.img_size, statistics)
