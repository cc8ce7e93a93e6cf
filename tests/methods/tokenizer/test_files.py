"""Tokenizers' files that others wrote: what is in them is data, and what can't be used is named."""

import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efficient_mae import create_model
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.methods.tokenizer import DiscreteVAE, DiscreteVAEConfig, load_tokenizer, tokenizer_metadata

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "dalle_encoder.safetensors")
WEIGHTS = {name.removeprefix("weights."): one for name, one in GOLDEN.items() if name.startswith("weights.")}


@pytest.fixture
def package() -> Iterator[dict[str, type[nn.Module]]]:
    """Classes under the names of the dall_e package, whose pickles have the layout of the published one.

    Afterwards the package isn't there any more.
    """
    made: dict[str, type[nn.Module]] = {}
    sys.modules["dall_e"] = ModuleType("dall_e")
    for module, names in (("dall_e.encoder", ("Encoder", "EncoderBlock")), ("dall_e.utils", ("Conv2d",))):
        sys.modules[module] = ModuleType(module)
        for name in names:
            made[name] = type(name, (nn.Module,), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    yield made
    forget_package()


def forget_package() -> None:
    for name in [name for name in sys.modules if name.startswith("dall_e")]:
        del sys.modules[name]


def published(package: dict[str, type[nn.Module]]) -> nn.Module:
    """The published encoder's tree of modules, with the golden weights."""
    root = package["Encoder"]()
    root.device, root.use_mixed_precision, root.n_hid = torch.device("cpu"), True, 8
    for name, value in WEIGHTS.items():
        *path, leaf = name.split(".")
        module = root
        for place, part in enumerate(path):
            if part not in module._modules:
                kind = nn.Sequential
                if path[place - 1].startswith("group_") and part.startswith("block_"):
                    kind = package["EncoderBlock"]
                elif place == len(path) - 1:
                    kind = package["Conv2d"]
                module.add_module(part, kind())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(value))
    for group in root.blocks.children():
        if isinstance(group, nn.Sequential):
            group.add_module("pool", nn.MaxPool2d(2))
    root.blocks.group_1.block_1.add_module("id_path", nn.Identity())
    root.blocks.output.add_module("relu", nn.ReLU())
    return root


def test_the_published_pickle_is_read_without_its_package(package, tmp_path: Path):
    torch.save(published(package), tmp_path / "encoder.pkl")
    forget_package()
    tokenizer = load_tokenizer(tmp_path / "encoder.pkl")
    assert torch.equal(tokenizer.encode(GOLDEN["input.raw"].float()), GOLDEN["out.ids"])
    assert not any(name.startswith("dall_e") for name in sys.modules)


class Hostile(nn.Module):
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def hidden_code(package) -> nn.Module:
    root = published(package)
    root.blocks.group_2.block_1.res_path.add_module("conv_2", Hostile())
    return root


def endless(package) -> nn.Module:
    root = published(package)
    root.blocks._modules["input"] = root
    return root


@pytest.mark.parametrize(
    ("make", "said"),
    [(hidden_code, r"more than tensors and plain values \(\S+\), which could run code; nothing in it was run"),
     (lambda _: Hostile(), r"state_dict\(\), 'encoder.pt'"),
     (endless, "without encoder.input|another layout"),
     (lambda _: nn.Conv2d(1, 1, 1), r"Conv2d\), which could run code")],
)  # fmt: skip
def test_code_in_a_file_is_not_run(
    package, make: Callable[[Any], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(make(package), tmp_path / "encoder.pkl")
    with pytest.raises(InputError, match=said) as error:
        load_tokenizer(tmp_path / "encoder.pkl")
    assert "\n" not in str(error.value) and not (tmp_path / "touched").exists()


def test_a_module_as_pytorch_wrote_it_before_2020(package, tmp_path: Path):
    torch.save(published(package), tmp_path / "encoder.pkl", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"nothing in it was run. If you trust it, write its weights alone"):
        load_tokenizer(tmp_path / "encoder.pkl")


def changed(**others: Tensor) -> dict[str, Tensor]:
    return {name: one for name, one in {**WEIGHTS, **others}.items() if one is not None}


@pytest.mark.parametrize(
    ("content", "said"),
    [(changed(**{"blocks.output.conv.b": None}), "without encoder.output.bias"),
     (changed(head=torch.ones(1)), "with head"),
     (changed(**{"blocks.group_1.block_2.res_path.conv_1.w": torch.ones(2, 8, 5, 5)}), "is .2, 8, 5, 5. and not"),
     (changed(**{"blocks.group_1.block_99.res_path.conv_1.w": torch.ones(1)}), "another (layout|architecture)"),
     ({"a": torch.ones(1)}, "another layout"),
     ({"a": 1}, "holds no state dict"),
     ({"a": torch.eye(3).to_sparse()}, "holds no state dict"),
     ([torch.ones(1)], "holds no state dict"),
     (changed(**{"blocks.output.conv.w": torch.ones(1).expand(2**40, 64, 1, 1)}), "larger than the file")],
)  # fmt: skip
def test_files_of_another_layout(content: Any, said: str, tmp_path: Path):
    torch.save(content, tmp_path / "encoder.pt")
    with pytest.raises(InputError, match=f"encoder.pt: .*{said}"):
        load_tokenizer(tmp_path / "encoder.pt")


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "encoder.pt"])
@pytest.mark.parametrize("content", [b"", b"no tokenizer", pickle.dumps({"a": 1}), b"\xff" * 100])
def test_files_of_something_else(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: (not a|holds)") as error:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value)


def test_what_is_cut_short(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "encoder.safetensors")
    torch.save(WEIGHTS, tmp_path / "encoder.pt")
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match="not a (readable|whole)"):
            load_tokenizer(file)


def test_what_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"nothing: no such file or directory; give a run of emae tokenizer"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds no tokenizer.safetensors and no model.safetensors or"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match=r"resume it: it isn't finished"):
        load_tokenizer(tmp_path)


def test_an_encoder_is_no_tokenizer(tmp_path: Path):
    model = create_model("mae_vit_tiny_patch4", img_size=16, depth=1, decoder_depth=1, decoder_embed_dim=32)
    save_encoder(tmp_path / "encoder.safetensors", model, ImageStatistics((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(InputError, match="holds no tokenizer but a model"):
        load_tokenizer(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    ("header", "said"),
    [({"width": 2**30}, "another architecture|another layout"), ({"width": "wide"}, "header|width="),
     ({"stride": 3}, "stride=3"), ({"wings": 2}, "header"), ({"num_blocks": 64}, "weights of another architecture")],
)  # fmt: skip
def test_headers_that_lie(header: dict[str, Any], said: str, tmp_path: Path):
    config = DiscreteVAEConfig(in_chans=1, vocab_size=4, stride=2, width=8, num_blocks=0)
    told = json.loads(tokenizer_metadata(config)["efficient_mae"])
    told["tokenizer"] |= header
    file = tmp_path / "tokenizer.safetensors"
    save_file(OrderedDict(DiscreteVAE(config).state_dict()), file, {"efficient_mae": json.dumps(told)})
    with pytest.raises(InputError, match=said):
        load_tokenizer(file)
