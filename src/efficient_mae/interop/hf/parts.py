"""What all models of transformers have in common."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# An epsilon up to this changes features by less than float32 does; transformers' own models have 1e-12.
LARGEST_EPS = 1e-5

# Of every tensor our name, and transformers' names of the parts that are stacked in it: of queries, keys and values
# three.
Names = Iterable[tuple[str, list[str]]]

Model = TypeVar("Model", bound=nn.Module)


def square_side(config: Any, name: str) -> int:
    """Height and width in a configuration, which are one number or two.

    Raises:
        InputError: they are two.
    """
    value = getattr(config, name)
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise InputError(f"{name}={value}: transformers' model works for squares only")
    return sides.pop()


def common_side(img_size: tuple[int, int], model: str) -> int:
    """Height and width of images; raises InputError where they differ, which transformers' model does not take."""
    height, width = img_size
    if height != width:
        raise InputError(f"img_size={height}x{width}: transformers' {model} takes square images only; timm takes any")
    return height


def check_settings(theirs: Any, needed: Mapping[str, Any], model: str, ours: str) -> None:
    """Raise InputError for a configuration of transformers' model in which a setting isn't as ours needs it."""
    for name, value in needed.items():
        if (given := getattr(theirs, name)) != value:
            raise InputError(f"{name}={given}: a {model} of another architecture; {ours}'s has {value}")
    if theirs.layer_norm_eps > LARGEST_EPS:
        raise InputError(
            f"layer_norm_eps={theirs.layer_norm_eps}: a {model} of another architecture; {ours}'s has at most "
            f"{LARGEST_EPS:g}"
        )


def give_weights(model: nn.Module, hf: Any, names: Names) -> Any:
    """transformers' model in the precision and with the weights of ours."""
    weights = model.state_dict()
    hf = hf.to(weights["mask_token"].dtype)
    stacked = [(theirs, weights[ours].chunk(len(theirs))) for ours, theirs in names]
    hf.load_state_dict({name: part for theirs, parts in stacked for name, part in zip(theirs, parts, strict=True)})
    return hf.train(model.training)


def take_weights(model: Model, hf: Any, names: Names) -> Model:
    """Our model in the precision and with the weights of transformers'."""
    weights = hf.state_dict()
    model = model.to(hf.dtype)
    model.load_state_dict({ours: torch.cat([weights[name] for name in theirs]) for ours, theirs in names})
    return model.train(hf.training)


def block_modules(block: str, layer: str) -> dict[str, list[str]]:
    """Our and transformers' names of a block's modules."""
    return {
        f"{block}.norm1": [f"{layer}.layernorm_before"],
        f"{block}.attn.qkv": [f"{layer}.attention.{which}_proj" for which in "qkv"],
        f"{block}.attn.proj": [f"{layer}.attention.o_proj"],
        f"{block}.norm2": [f"{layer}.layernorm_after"],
        f"{block}.mlp.fc1": [f"{layer}.mlp.fc1"],
        f"{block}.mlp.fc2": [f"{layer}.mlp.fc2"],
    }


def parameter_names(modules: Mapping[str, list[str]]) -> Names:
    """Names of the modules' weights and biases."""
    for ours, theirs in modules.items():
        for what in ("weight", "bias"):
            yield f"{ours}.{what}", [f"{name}.{what}" for name in theirs]


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and loading reports, which would mix with our own lines; what it adds to
    Python's path, for code that goes with a model, is taken back."""
    logging = transformers.utils.logging
    path, level, bars = list(sys.path), logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        sys.path[:] = path
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def transformers_library() -> Any:
    """The library; raises InputError where it isn't installed."""
    try:
        import transformers
    except ImportError:
        raise InputError("transformers isn't installed; pip install 'efficient-mae[hub]'") from None
    return transformers


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file or it is something else."""
    try:
        content = parse_json(file.read_bytes(), str(file))
    except (OSError, InputError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
