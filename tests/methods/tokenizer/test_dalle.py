"""DALL-E's encoder: the published implementation's values, transformers' FlavaImageCodebook, its cost."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import FlavaConfig, FlavaForPreTraining, FlavaImageCodebook, FlavaImageCodebookConfig

from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import DalleEncoder, load_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "dalle_encoder.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights."): value for name, value in golden.items() if name.startswith("weights.")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pkl"])
def test_the_published_implementations_logits_and_ids(golden, weights, suffix: str, tmp_path: Path):
    file = tmp_path / f"encoder{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    tokenizer = load_tokenizer(file)
    assert isinstance(tokenizer, DalleEncoder)
    images = golden["input.raw"].float()
    assert (tokenizer.in_chans, tokenizer.vocab_size, tokenizer.stride) == (3, 128, 8)
    torch.testing.assert_close(tokenizer.logits(images), golden["out.logits"], rtol=0, atol=1e-6)
    assert torch.equal(tokenizer.encode(images), golden["out.ids"])
    assert tokenizer.decode(golden["out.ids"]) is None
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


@pytest.fixture(scope="module")
def codebook(weights) -> FlavaImageCodebook:
    """The golden README's map of names."""
    model = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=128))
    names = {
        re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name))
        .replace(".block_", ".group.block_")
        .replace(".res_path.", ".res_path.path."): value
        for name, value in weights.items()
    }
    model.load_state_dict(names)
    return model.eval()


def test_transformers_folder(golden, codebook: FlavaImageCodebook, tmp_path: Path):
    images = golden["input.raw"].float()[..., :48]
    codebook.save_pretrained(tmp_path / "new")
    (tmp_path / "old").mkdir()
    torch.save(codebook.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    for folder in ("new", "old"):
        tokenizer, pixels = load_tokenizer(tmp_path / folder), 0.8 * images + 0.1
        torch.testing.assert_close(tokenizer.logits(images), codebook.blocks(pixels), rtol=0, atol=1e-6)
        ids = tokenizer.encode(images)
        assert torch.equal(ids, codebook.get_codebook_indices(pixels)) and len(ids.unique()) > 10


def test_the_codebook_within_flava(codebook: FlavaImageCodebook, tmp_path: Path):
    weights = {f"image_codebook.{name}": value for name, value in codebook.state_dict().items()}
    assert weights.keys() <= FlavaForPreTraining(small_flava()).state_dict().keys()
    save_file(weights | {"flava.logit_scale": torch.ones(())}, tmp_path / "model.safetensors")
    assert load_tokenizer(tmp_path).vocab_size == 128


def small_flava() -> FlavaConfig:
    part = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return FlavaConfig(
        image_config=part,
        text_config=part | {"vocab_size": 16},
        multimodal_config=part,
        image_codebook_config={"hidden_size": 8, "vocab_size": 128},
        hidden_size=8,
        projection_dim=8,
    )


def test_one_digest_for_one_set_of_weights(weights, tmp_path: Path):
    torch.save(weights, tmp_path / "encoder.pt")
    save_file(weights, tmp_path / "encoder.safetensors")
    one, same = (load_tokenizer(tmp_path / f"encoder{suffix}").digest for suffix in (".pt", ".safetensors"))
    assert one == same and len(one) == 64
    torch.save({**weights, "blocks.output.conv.b": weights["blocks.output.conv.b"] + 1e-3}, tmp_path / "other.pt")
    assert load_tokenizer(tmp_path / "other.pt").digest != one


def test_it_costs_what_the_paper_adds():
    """Table 3: BEiT-B 18.8, and 44.9 with the tokenizer."""
    with torch.device("meta"):
        tokenizer, images = DalleEncoder(), torch.empty(1, 3, 112, 112)
    with FlopCounterMode(display=False) as counter:
        assert tokenizer.encode(images).shape == (1, 14, 14)
    assert counter.get_total_flops() / 2e9 == pytest.approx(44.9 - 18.8, rel=0.005)


@pytest.mark.parametrize(("shape", "said"), [((1, 1, 16, 16), "takes 3"), ((1, 3, 20, 16), "20 x 16 pixels")])
def test_images_that_it_does_not_take(shape: tuple[int, ...], said: str):
    with pytest.raises(InputError, match=said):
        DalleEncoder(width=4).encode(torch.zeros(shape))
