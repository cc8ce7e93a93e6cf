"""What BEiT and CAE learn: visual tokens of hidden patches, which a frozen tokenizer reads off the whole image.

B images, C channels, h x w pixels, H x W patches, N = H * W, T hidden patches of the batch, K tokens of a vocabulary.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float, Int64
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from efficient_mae.backbones.patches import as_pair, grid_size, pixel_mask
from efficient_mae.backbones.sizes import parse_name
from efficient_mae.channels import default_mean_std
from efficient_mae.errors import InputError
from efficient_mae.masking import check_blocks, num_hidden
from efficient_mae.methods.base import Method, MethodConfig, MethodSettings, Output
from efficient_mae.methods.masked import MaskedPlan
from efficient_mae.methods.tokenizer import DalleEncoder, Tokenizer, load_tokenizer
from efficient_mae.ranges import Finite, Location, Positive, PositiveInt, Ratio

# With which layer scale begins; and in models of so many blocks or more (BEiT's and CAE's published settings).
LAYER_SCALE, DEEP_LAYER_SCALE, DEEP = 0.1, 1e-5, 24
# DALL-E's encoder with random weights, as which it costs the same.
DALLE = "dall-e"
# Patches of the smallest block, as a share of the image's.
SMALLEST_BLOCK = 16 / 196


@dataclass(frozen=True, kw_only=True)
class TokenSettings(MethodSettings):
    """What can be chosen of a method that learns visual tokens."""

    tokenizer: Location | None = None
    """the tokenizer whose tokens are learned: a run of emae tokenizer, its file, or DALL-E's encoder.pkl; to measure
    costs, dall-e stands for the last with random weights, and null for none"""
    mask_ratio: Ratio = 0.383
    """share of patches that are hidden, in blocks"""
    smallest_block: PositiveInt | None = None
    """patches of a block, at least (null: 16 of 196)"""
    layer_scale: Positive | None = None
    """with which the branches of a block are weighted at first (null: 0.1; of models of 24 blocks and more 1e-5)"""
    drop_path: Annotated[float, Ge(0), Le(0.99)] = 0.1
    """share of the images for which the last block is skipped; grows from 0 in the first block"""


@dataclass(frozen=True, kw_only=True)
class TokenConfig(MethodConfig, TokenSettings):
    """What such a model is made of. The tokenizer is no part of it, but known by its digest.

    Attributes:
        mean, std: of each channel, by which its images are normalised: a tokenizer takes pixels from 0 to 1.
        vocab_size: K.
        tokenizer_digest: of the tokenizer; None where there is none.
    """

    measured = "cross-entropy"
    painted = "Reconstruction: what the tokenizer draws of the tokens that are predicted."

    smallest_block: PositiveInt = field()
    layer_scale: Positive = field()
    mean: tuple[Finite, ...] = field()
    std: tuple[Positive, ...] = field()
    vocab_size: PositiveInt = 8192
    tokenizer_digest: str | None = None

    @classmethod
    def resolve(cls, name: str, settings: MethodSettings, **derived: Any) -> Any:
        """As of any method; what the tokenizer is, and how images are normalised, too."""
        given, (size, patch_size) = cast(TokenSettings, settings), parse_name(name, name.partition("_")[0])
        grid = grid_size(as_pair(settings.img_size), patch_size)
        known = cls.usual(grid, settings.depth or cast(int, size.depth), settings.in_chans)
        for setting in known:  # a run's settings have mean and std too
            known[setting] = getattr(settings, setting, None) or known[setting]
        if given.tokenizer is not None:
            tokenizer = _load(given.tokenizer)
            if tokenizer.in_chans != settings.in_chans:
                raise InputError(
                    f"tokenizer={given.tokenizer}: of {tokenizer.in_chans} channels, and in_chans={settings.in_chans}"
                )
            known |= {"vocab_size": tokenizer.vocab_size, "tokenizer_digest": tokenizer.digest}
            if given.tokenizer != DALLE:
                known["tokenizer"] = str(Path(given.tokenizer).absolute())
        return super().resolve(name, settings, **known | derived)

    @staticmethod
    def usual(grid: tuple[int, int], depth: int, in_chans: int) -> dict[str, Any]:
        """What is so unless it is chosen otherwise."""
        mean, std = default_mean_std(in_chans)
        return {
            "smallest_block": max(1, round(SMALLEST_BLOCK * grid[0] * grid[1])),
            "layer_scale": LAYER_SCALE if depth < DEEP else DEEP_LAYER_SCALE,
            "mean": mean,
            "std": std,
        }

    @property
    def num_masked(self) -> int:
        """Patches that are to be hidden in an image."""
        return num_hidden(self.grid_size[0] * self.grid_size[1], self.mask_ratio)

    def tokenizer_gmacs(self) -> float:
        """Multiply-accumulates of one image's tokens, 1e9."""
        return 0.0 if self.tokenizer is None else _load(self.tokenizer).gmacs(self.grid_size)

    @property
    def draws(self) -> bool:
        """Drop path does."""
        return self.drop_path > 0


@dataclass(frozen=True)
class TokenOutput(Output):
    """What a forward pass returns.

    Attributes:
        errors: of each hidden patch: the cross-entropy of its token, and what else a method learns of it.
        logits: of each hidden patch's token.
        target: its token.
    """

    plan: MaskedPlan
    logits: Float[Tensor, "T K"]
    target: Int64[Tensor, " T"]


def token_errors(logits: Float[Tensor, "T K"], target: Int64[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Cross-entropy of each token, in float32 or better."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="none")


class TokenMethod(Method):
    """A method that learns visual tokens. The tokenizer is neither learned nor saved; it is read when it is asked."""

    operational = ("tokenizer",)
    config: Any

    def __init__(self, config: TokenConfig):
        check_blocks(config.grid_size, config.num_masked, config.smallest_block)
        super().__init__(config)
        self._words = _Words(config)

    def check_ready(self) -> None:
        if self.config.tokenizer in (None, DALLE):
            raise InputError(
                f"tokenizer={self.config.tokenizer or 'null'}: {self.config.method} learns the tokens of a trained "
                "tokenizer; give a run of emae tokenizer or DALL-E's encoder.pkl"
            )

    def tokens(self, images: Float[Tensor, "B C h w"], plan: MaskedPlan) -> Int64[Tensor, " T"]:
        """Those of the hidden patches of normalised images.

        Raises:
            InputError: the model has no tokenizer, or its file is gone or another.
        """
        if self.config.tokenizer is None and images.is_meta:
            return plan.ids_hidden.to("meta")  # what they are costs nothing
        if self.config.tokenizer is None:
            self.check_ready()
        return self._words.read(images).flatten().index_select(0, plan.ids_hidden)

    @torch.no_grad()
    def paint(self, images: Float[Tensor, "B C h w"], out: Any) -> Float[Tensor, "B C h w"] | None:
        """The images with hidden patches as the tokenizer draws the tokens that are predicted for them.

        It draws a picture as a whole, with the true tokens of visible patches.
        """
        if self.config.tokenizer is None:
            return None
        ids = self._words.read(images)
        ids.view(-1)[out.plan.ids_hidden] = out.logits.argmax(dim=1)
        drawn = self._words.draw(ids)
        return None if drawn is None else torch.where(pixel_mask(out.mask, self.config.patch_size), drawn, images)


class _Words:
    """A model's tokenizer. No module, so that it is no part of the model: not learned, saved, sharded or copied."""

    def __init__(self, config: TokenConfig):
        self._config = config
        self._read: dict[str, Tokenizer] = {}  # by device
        self._values: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Words":
        return self

    @torch.no_grad()
    def read(self, images: Float[Tensor, "B C h w"]) -> Int64[Tensor, "B H W"]:
        """The tokens of normalised images, one a patch."""
        tokenizer = self._on(images.device)
        scale, shift = self._statistics(images)
        pixels = images * scale + shift
        side = [one * tokenizer.stride for one in self._config.grid_size]
        small = F.interpolate(pixels, size=side, mode="bicubic", antialias=True).clamp(0, 1)
        return tokenizer.encode(small)

    def draw(self, ids: Int64[Tensor, "B H W"]) -> Float[Tensor, "B C h w"] | None:
        """Normalised images of tokens; None if the tokenizer can't draw."""
        pixels = self._on(ids.device).decode(ids)
        if pixels is None:
            return None
        scale, shift = self._statistics(pixels)
        sized = F.interpolate(pixels, size=self._config.img_size, mode="bicubic", antialias=True).clamp(0, 1)
        return (sized - shift) / scale

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Deviation and mean of each channel, (C, 1, 1)."""
        key = f"{images.device} {images.dtype}"
        if key not in self._values:  # a copy to a GPU would wait for it
            with unset_fake_temporarily():
                values = torch.tensor([self._config.std, self._config.mean], device=images.device, dtype=images.dtype)
                self._values[key] = values[..., None, None]
        scale, shift = self._values[key]
        return scale, shift

    def _on(self, device: torch.device) -> Tokenizer:
        """The tokenizer on a device.

        Raises:
            InputError: its file is gone or another.
        """
        key = str(device)
        if key not in self._read:
            self._read[key] = _load(cast(str, self._config.tokenizer), device, self._config.tokenizer_digest)
        return self._read[key]


def _load(name: str, device: torch.device | str = "cpu", digest: str | None = None) -> Tokenizer:
    """A tokenizer with its numbers, also where what surrounds it is only counted.

    Raises:
        InputError: as :func:`load_tokenizer`; or another than that of a digest.
    """
    with unset_fake_temporarily(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of random weights where they serve
        tokenizer = DalleEncoder() if name == DALLE else load_tokenizer(name)
        if digest not in (None, tokenizer.digest):
            raise InputError(f"tokenizer={name}: another than that whose tokens were learned; give it back its file")
        return tokenizer.to(device).eval().requires_grad_(False)
