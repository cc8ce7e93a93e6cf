"""The discrete VAE's arithmetic, against PyTorch's own parts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.distributions import Categorical, kl_divergence

from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import DiscreteVAE, DiscreteVAEConfig, load_tokenizer, tokenizer_metadata

SMALL = DiscreteVAEConfig(in_chans=2, vocab_size=12, stride=4, width=16, num_blocks=1)


@pytest.fixture
def vae() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(SMALL)


def gumbel(shape: torch.Size) -> torch.Tensor:
    return -torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(1)).log()


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("width", [8, 64])
def test_a_token_for_each_square(stride: int, width: int):
    config = DiscreteVAEConfig(in_chans=1, vocab_size=7, stride=stride, width=width, num_blocks=0)
    vae = DiscreteVAE(config)
    ids = vae.encode(torch.rand(2, 1, 2 * stride, 3 * stride))
    assert ids.shape == (2, 2, 3) and ids.dtype == torch.int64
    drawn = vae.decode(ids)
    assert drawn.shape == (2, 1, 2 * stride, 3 * stride) and drawn.min() >= 0 and drawn.max() <= 1
    assert (vae.in_chans, vae.vocab_size, vae.stride) == (1, 7, stride)


def test_the_relaxation_is_pytorchs(vae: DiscreteVAE, monkeypatch: pytest.MonkeyPatch):
    pixels, temperature = torch.rand(3, 2, 8, 8), 0.7
    logits = vae.logits(pixels)
    noise = gumbel(logits.shape)
    out = vae(pixels, noise, temperature)
    uniform = Categorical(logits=torch.zeros(12))
    expected = kl_divergence(Categorical(logits=logits.permute(0, 2, 3, 1)), uniform)
    torch.testing.assert_close(out.kl, expected, rtol=1e-5, atol=1e-6)
    with monkeypatch.context() as patch:  # F.gumbel_softmax draws exponentially distributed numbers, and takes logs
        patch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_((-noise).exp()))
        mixture = F.gumbel_softmax(logits, tau=temperature, dim=1)
    directions = F.normalize(vae.encoder.words.weight, dim=1)
    drawn = (vae.decoder(torch.einsum("bkhw,kd->bdhw", mixture, directions)) + 1) / 2
    torch.testing.assert_close(out.pixels, drawn, rtol=1e-4, atol=1e-5)


def test_a_cold_mixture_is_a_word(vae: DiscreteVAE):
    pixels = torch.rand(3, 2, 8, 8)
    noise = 9 * gumbel(torch.Size((3, 12, 2, 2)))
    ids = (vae.logits(pixels) + noise).argmax(dim=1)
    assert len(ids.unique()) > 3
    cold = vae(pixels, noise, 1e-5).pixels
    torch.testing.assert_close(cold.clamp(0, 1), vae.decode(ids), rtol=0, atol=1e-4)


def test_everything_learns(vae: DiscreteVAE):
    out = vae(torch.rand(3, 2, 8, 8), gumbel(torch.Size((3, 12, 2, 2))), 0.5)
    (out.pixels.square().mean() + out.kl.mean()).backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in vae.parameters())


def test_half_precision_around_it_changes_no_token(vae: DiscreteVAE):
    pixels = torch.rand(8, 2, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.encode(pixels), ids := vae.eval().encode(pixels))
        assert vae.decode(ids).dtype == torch.float32


def test_saved_and_loaded_it_is_the_same(vae: DiscreteVAE, tmp_path: Path):
    save_file(vae.state_dict(), tmp_path / "tokenizer.safetensors", tokenizer_metadata(SMALL))
    pixels = torch.rand(2, 2, 16, 16)
    for path in (tmp_path, tmp_path / "tokenizer.safetensors", str(tmp_path)):
        loaded = load_tokenizer(path)
        assert isinstance(loaded, DiscreteVAE) and loaded.config == SMALL and loaded.digest == vae.digest
        assert torch.equal(loaded.encode(pixels), ids := vae.encode(pixels))
        assert torch.equal(loaded.decode(ids), vae.decode(ids))


def test_the_digest_is_of_what_tokens_follow_from(vae: DiscreteVAE):
    before = vae.digest
    with torch.no_grad():
        vae.decoder[-1].bias += 1
    assert vae.digest == before  # another picture of the same tokens
    with torch.no_grad():
        vae.encoder.words.weight[3, 4] += 1e-3
    assert vae.digest != before


@pytest.mark.parametrize(("wrong", "said"), [({"stride": 6}, "2, 4, 8, 16"), ({"vocab_size": 1}, "at least 2")])
def test_sizes_that_cannot_be(wrong: dict[str, int], said: str):
    with pytest.raises(InputError, match=said):
        DiscreteVAEConfig(**wrong)
