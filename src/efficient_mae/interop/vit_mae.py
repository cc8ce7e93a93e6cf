"""transformers' ViTMAE, both ways, encoder and decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from efficient_mae.backbones import VisionTransformer
from efficient_mae.backbones.vit import LAYER_NORM_EPS
from efficient_mae.data import crop_share, default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.durable import share
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.interop.files import ImageStatistics, encoder_of
from efficient_mae.methods import Method
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

# Points that P2Dist looks at (Algorithm 1), which transformers knows nothing of.
_K = 8

# An epsilon up to this changes features by less than float32 does; transformers' own models have 1e-12.
_LARGEST_EPS = 1e-5


@torch_seeded(0)
def to_hf(model: Method | VisionTransformer) -> "ViTMAEForPreTraining":
    """transformers' ViTMAEForPreTraining with the model's weights: the same loss for the same mask where beta is None
    and gamma 0; transformers has neither, reconstructs every masked patch and weights them alike.

    Args:
        model: with its decoder; its weights are copied.

    Raises:
        InputError: an encoder alone, another decoder than MAE's, images that aren't square, or no transformers
            installed.
    """
    transformers = _transformers()
    if isinstance(model, VisionTransformer):
        raise InputError(
            "an encoder alone, and transformers' ViTMAEForPreTraining has a decoder; give the whole model"
        )
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"a model of {model.config.method}, and transformers' ViTMAEForPreTraining is MAE's alone")
    config = model.config
    if config.decoder != "self":
        raise InputError(
            f"decoder={config.decoder}: transformers' ViTMAEForPreTraining has MAE's decoder, self, alone; "
            "hand over the encoder, as timm's"
        )
    height, width = config.img_size
    if height != width:
        raise InputError(f"img_size={height}x{width}: transformers' ViTMAE takes square images only; timm takes any")
    hf = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=height,
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
    ).to(model.mask_token.dtype)
    weights = model.state_dict()
    hf.load_state_dict(
        {
            theirs: part
            for ours, names in _names(config)
            for theirs, part in zip(names, weights[ours].chunk(len(names)))
        }
    )
    return hf.train(model.training)


@torch_seeded(0)
def from_hf(hf: "ViTMAEForPreTraining", gamma: float = 0.0, beta: float | None = None) -> MaskedAutoencoder:
    """The model with the weights of transformers' ViTMAE; mask ratio and norm_pix_loss are its config's.

    Args:
        hf: its weights are copied.
        gamma: exponent of the Difficulty-Flatten Loss; 0 weights all patches alike, as transformers does.
        beta: the decoder leaves out patches of larger P2Dist: pixels at patch size 16; None leaves out none.

    Raises:
        InputError: an architecture that differs from MAE's in more than its sizes; the setting is named.
    """
    config = _our_config(hf.config, gamma, beta)
    weights = hf.state_dict()
    model = MaskedAutoencoder(config).to(hf.dtype)
    model.load_state_dict({ours: torch.cat([weights[name] for name in names]) for ours, names in _names(config)})
    return model.train(hf.training)


def _our_config(theirs: Any, gamma: float, beta: float | None) -> MAEConfig:
    must_be = {
        "hidden_act": ("gelu", theirs.hidden_act),
        "qkv_bias": (True, theirs.qkv_bias),
        "intermediate_size": (4 * theirs.hidden_size, theirs.intermediate_size),
        "decoder_intermediate_size": (4 * theirs.decoder_hidden_size, theirs.decoder_intermediate_size),
    }
    for name, (needed, given) in must_be.items():
        if given != needed:
            raise InputError(f"{name}={given}: a ViTMAE of another architecture; MAE's has {needed}")
    if theirs.layer_norm_eps > _LARGEST_EPS:
        raise InputError(f"layer_norm_eps={theirs.layer_norm_eps}: a ViTMAE of another architecture; MAE's has 1e-6")
    side = _side(theirs, "image_size")
    return MAEConfig(
        img_size=(side, side),
        patch_size=_side(theirs, "patch_size"),
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


def _side(config: Any, name: str) -> int:
    value = getattr(config, name)
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise InputError(f"{name}={value}: transformers' ViTMAE works for squares only")
    return sides.pop()


def _names(config: MAEConfig) -> Iterator[tuple[str, list[str]]]:
    """(our name, transformers' names) of every tensor; three of theirs, stacked, are our fused qkv."""
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
            modules[f"{block}.norm1"] = [f"{layer}.layernorm_before"]
            modules[f"{block}.attn.qkv"] = [f"{layer}.attention.{which}_proj" for which in "qkv"]
            modules[f"{block}.attn.proj"] = [f"{layer}.attention.o_proj"]
            modules[f"{block}.norm2"] = [f"{layer}.layernorm_after"]
            modules[f"{block}.mlp.fc1"] = [f"{layer}.mlp.fc1"]
            modules[f"{block}.mlp.fc2"] = [f"{layer}.mlp.fc2"]
    for ours, theirs in modules.items():
        for what in ("weight", "bias"):
            yield f"{ours}.{what}", [f"{name}.{what}" for name in theirs]


def is_hf_folder(path: Path) -> bool:
    """Whether a path is a folder in transformers' layout, of whatever model."""
    return "model_type" in _read_json(path / "config.json")


def load_hf_folder(folder: Path) -> MaskedAutoencoder | VisionTransformer:
    """The ViTMAE in a folder of transformers' layout; the encoder alone if it holds no decoder. Runs no code in it.

    Raises:
        InputError: another model, weights that don't fit its config or aren't safetensors, no transformers installed.
    """
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "vit_mae":
        raise InputError(f"{folder}: a transformers folder of model_type {kind!r}; only vit_mae can be read")
    transformers = _transformers()
    try:
        with quiet(transformers):
            hf, info = transformers.ViTMAEForPreTraining.from_pretrained(
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


def hf_statistics(folder: Path) -> ImageStatistics:
    """Mean and standard deviation in a folder's preprocessor_config.json; the usual ones if it has none.

    Raises:
        InputError: they aren't one number for each of the model's channels.
    """
    in_chans = _read_json(folder / "config.json").get("num_channels", 3)
    values = _read_json(folder / "preprocessor_config.json")
    default = default_mean_std(in_chans)
    mean, std = values.get("image_mean", default[0]), values.get("image_std", default[1])
    try:
        statistics = ImageStatistics(tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError):
        statistics = ImageStatistics((), ())
    if not len(statistics.mean) == len(statistics.std) == in_chans:
        raise InputError(
            f"{folder / 'preprocessor_config.json'}: image_mean={mean} and image_std={std} must be "
            f"{in_chans} numbers each, one a channel"
        )
    return statistics


def save_hf(folder: Path, model: MaskedAutoencoder, statistics: ImageStatistics) -> None:
    """Write a folder that `ViTMAEForPreTraining`, `AutoModel` and `AutoImageProcessor.from_pretrained` load.

    Raises:
        InputError: as :func:`to_hf`.
        OSError: the disk is full or not writable.
    """
    transformers = _transformers()
    height, width = model.config.img_size
    with quiet(transformers):
        to_hf(model).save_pretrained(folder)
        # By itself it would squash whole images.
        transformers.ViTImageProcessor(
            size={"shortest_edge": int(height / crop_share(model.config.img_size, statistics.size))},
            do_center_crop=True,
            crop_size={"height": height, "width": width},
            resample=3,  # bicubic
            image_mean=list(statistics.mean),
            image_std=list(statistics.std),
        ).save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        share(file)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and loading reports, which would mix with our own lines."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError("transformers isn't installed; pip install 'efficient-mae[hub]'") from None
    return transformers


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file or it is something else."""
    try:
        content = parse_json(file.read_bytes(), str(file))
    except (OSError, InputError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
