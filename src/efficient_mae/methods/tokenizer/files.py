"""Tokenizers in files: those that `emae tokenizer` trains, and DALL-E's encoder as it was published. What is read is
data: no code in a file is ever run.

DALL-E's encoder comes as `encoder.pkl`, a module pickled whole; as a state dict of it; and as transformers'
FlavaImageCodebook, alone or within FLAVA. A pickled module is a tree of records that hold tensors, and is read as
just that: in the place of its classes stands one that does nothing.
"""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer.base import Tokenizer
from efficient_mae.methods.tokenizer.dalle import DalleEncoder
from efficient_mae.methods.tokenizer.dvae import DiscreteVAE, DiscreteVAEConfig

# In a run's directory.
TOKENIZER_FILE = "tokenizer.safetensors"

# The key of a safetensors header under which this package says what a file is of, and there that of a tokenizer.
_METADATA_KEY, _KIND = "efficient_mae", "tokenizer"

# In a folder of transformers'.
_HF_FILES = ("model.safetensors", "pytorch_model.bin")

# What a pickled encoder of the dall_e package is made of. Its names are spelt out: nothing else is let in.
_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
# Modules within modules: the encoder, its blocks, a group, a block, a path, a convolution.
_DEEPEST = 8

_ACCEPTED = (
    f"a run of emae tokenizer or its {TOKENIZER_FILE}, DALL-E's encoder.pkl or a state dict of it, "
    "or a folder of transformers' FlavaImageCodebook"
)

# Names of the dall_e package and of transformers, and ours.
_THEIRS = (
    (r"^(?:.*\.)?blocks\.", "encoder."),
    (r"^(encoder\.group_\d+)\.group\.", r"\1."),
    (r"\.res_path\.path\.", ".res_path."),
    (r"^encoder\.output\.conv\.", "encoder.output."),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
)


def tokenizer_metadata(config: DiscreteVAEConfig) -> dict[str, str]:
    """A safetensors header that says how to build a tokenizer."""
    return {_METADATA_KEY: json.dumps({_KIND: asdict(config)})}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer with its weights, in float32 on the CPU, in evaluation mode and without gradients.

    Args:
        path: a run of `emae tokenizer`, its `tokenizer.safetensors` or a checkpoint's `model.safetensors`; DALL-E's
            `encoder.pkl`, or a state dict of it (`.pt`, `.pth`, `.bin`, `.safetensors`), under its own names or those
            of transformers' FlavaImageCodebook; a folder of such a model of transformers'.

    Raises:
        InputError: nothing there, a file of something else or with code in it (which isn't run), or weights of
            another architecture.
    """
    file = _find(Path(path).expanduser())
    config, tensors = _read_safetensors(file) if file.suffix == ".safetensors" else (None, _unpickled(file))
    try:
        build = partial(DiscreteVAE, config) if config else _dalle_encoder(tensors := _renamed(tensors))
        with torch.device("meta"):  # built first, what a header describes could fill the memory
            _check(tensors, build())
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):  # the last of sizes that overflow
        raise InputError(f"{file}: of another layout than a tokenizer's; accepted: {_ACCEPTED}") from None
    tokenizer = build()
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval().requires_grad_(False)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory; give {_ACCEPTED}")
    for name in (TOKENIZER_FILE, *_HF_FILES):
        if (path / name).is_file():
            return path / name
    unfinished = (path / "config.yaml").is_file()
    mend = "if it is a run of emae tokenizer, resume it: it isn't finished" if unfinished else f"give {_ACCEPTED}"
    raise InputError(f"{path}: holds no {TOKENIZER_FILE} and no {' or '.join(_HF_FILES)}; {mend}")


def _read_safetensors(file: Path) -> tuple[DiscreteVAEConfig | None, dict[str, Tensor]]:
    """The tensors, and the config where the file is one of ours."""
    try:
        with safe_open(file, "pt") as content:
            header = (content.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file ({error})") from None
    if header is None:
        return None, tensors
    try:
        described = json.loads(header)
        if _KIND not in described:
            raise InputError(f"holds no tokenizer but a model; accepted: {_ACCEPTED}")
        return DiscreteVAEConfig(**described[_KIND]), tensors
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{file}: its header doesn't describe a tokenizer of efficient-mae") from None


class _Record:
    """Stands for every class of a pickled module: unpickling one sets attributes, no more."""

    _modules: Any
    _parameters: Any


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a pickled encoder of the dall_e package."""
    try:
        records: list[Any] = [(_Record, name) for name in _CLASSES]
        with torch.serialization.safe_globals(records), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Before 2020 PyTorch wrote modules in a way that its safe reader doesn't know.
        found = re.search(r"(?:GLOBAL|Unsupported class|load of storage is allowed, but got) (\S+)", str(error))
        if found:
            raise InputError(
                f"{file}: holds more than tensors and plain values ({found[1].strip('.,')}), which could run code; "
                "nothing in it was run. If you trust it, write its weights alone: "
                "torch.save(torch.load(file, weights_only=False).state_dict(), 'encoder.pt')"
            ) from None
        raise InputError(f"{file}: not a file that PyTorch wrote; accepted: {_ACCEPTED}") from None
    # Bytes that are no such file fail wherever the reader happens to stumble.
    except Exception:
        raise InputError(f"{file}: not a whole file that PyTorch wrote; accepted: {_ACCEPTED}") from None
    content = dict(_tensors(content)) if isinstance(content, _Record) else content
    is_state_dict = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided
        for name, value in content.items()
    )
    if not is_state_dict:
        raise InputError(f"{file}: holds no state dict; accepted: {_ACCEPTED}")
    # A view of one number can claim any shape, and a model of that shape would fill the memory.
    if any(value.untyped_storage().nbytes() < value.nbytes for value in content.values()):
        raise InputError(f"{file}: its tensors are larger than the file, so they aren't a tokenizer's")
    return content


def _tensors(record: _Record, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a pickled module, as its state dict names them; what is none is passed over."""
    if depth > _DEEPEST:
        return
    held = vars(record)
    for name, value in _items(held.get("_parameters")):
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
    for name, value in _items(held.get("_modules")):
        if isinstance(value, _Record):
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of DALL-E's encoder under our names; of a model that holds it, without the rest."""
    own = {name: value for name, value in tensors.items() if name.startswith("image_codebook.")} or tensors
    renamed: dict[str, Tensor] = {}
    for name, value in own.items():
        for theirs, ours in _THEIRS:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed


def _dalle_encoder(tensors: Mapping[str, Tensor]) -> Callable[[], DalleEncoder]:
    """Builds an encoder of these tensors' shapes.

    Raises:
        KeyError, IndexError, ValueError: they are of another architecture.
    """
    width, in_chans = tensors["encoder.input.weight"].shape[:2]
    blocks = [int(match[1]) for name in tensors if (match := re.match(r"encoder\.group_1\.block_(\d+)\.", name))]
    if not 0 < max(blocks) <= len(tensors):  # a block has tensors: others would be built for nothing
        raise ValueError
    return partial(
        DalleEncoder,
        in_chans=in_chans,
        vocab_size=len(tensors["encoder.output.weight"]),
        width=width,
        num_blocks=max(blocks),
    )


def _check(tensors: Mapping[str, Tensor], empty: nn.Module) -> None:
    """Refuse tensors of another architecture; the first that differs is named."""
    own = empty.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            what = f"without {name}" if name in own else f"with {name}"
        elif own[name].shape != tensors[name].shape:
            what = f"{name} is {tuple(tensors[name].shape)} and not {tuple(own[name].shape)}"
        else:
            continue
        raise InputError(f"weights of another architecture, {what}")
