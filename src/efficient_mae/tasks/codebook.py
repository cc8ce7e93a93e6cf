"""How a tokenizer uses its vocabulary, and what it makes of images.

B images, C channels, h x w pixels, H x W tokens of an image, K words.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.methods.tokenizer import Tokenizer
from efficient_mae.pictures import png

# In a run's directory.
CODEBOOK = "codebook.json"

_BATCH, _DPI = 32, 150
# Inches of a picture, of what is above all of them and around each.
_CELL, _HEAD, _GAP = 1.75, 0.66, 0.09
_COLUMNS = ("Input", "Tokens, a colour a word", "Drawn from its tokens", "Difference")
# Below this many pixels an image is shown as the pixels it is, and not smoothed.
_SMALL = 112


@dataclass(frozen=True)
class CodebookUse:
    """What a tokenizer makes of some images.

    Attributes:
        images: their number.
        words: of the vocabulary.
        used: share of the words that occur.
        perplexity: of the words: so many that occur equally often would be as hard to guess.
        mean_squared_error: of the pixels, from 0 to 1, that are drawn of the tokens.
        counts: of the words that occur, the most frequent first.
    """

    images: int
    words: int
    used: float
    perplexity: float
    mean_squared_error: float
    counts: list[int]


@torch.no_grad()
def codebook_use(tokenizer: Tokenizer, images: Float[Tensor, "B C h w"]) -> CodebookUse:
    """Look at images with a tokenizer that has a decoder.

    Args:
        images: pixels from 0 to 1, wherever they are.
    """
    device = next(tokenizer.parameters()).device
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64)
    error = 0.0
    for batch in images.split(_BATCH):
        ids = tokenizer.encode(batch.to(device))
        counts += torch.bincount(ids.flatten().cpu(), minlength=tokenizer.vocab_size)
        error += float((_decoded(tokenizer, ids) - batch.to(device)).double().square().sum())
    occurring = counts[counts > 0].sort(descending=True).values
    shares = occurring.double() / occurring.sum()
    return CodebookUse(
        images=len(images),
        words=tokenizer.vocab_size,
        used=len(occurring) / tokenizer.vocab_size,
        perplexity=math.exp(-float((shares * shares.log()).sum())),
        mean_squared_error=error / images.numel(),
        counts=occurring.tolist(),
    )


@torch.no_grad()
def draw_token_panel(
    tokenizer: Tokenizer, images: Float[Tensor, "B C h w"], *, title: str, path: Path | None = None
) -> Figure:
    """Images, their tokens, and what is drawn of these, a row an image.

    Args:
        images: pixels from 0 to 1; of two channels the first is drawn, of four and more the first three.
        path: where to write it as PNG, whole or not at all; None writes nothing.

    Raises:
        OSError: the picture cannot be written.
    """
    ids = tokenizer.encode(images.to(next(tokenizer.parameters()).device))
    drawn = _decoded(tokenizer, ids).cpu()
    rows, (height, width) = len(images), images.shape[2:]
    down = _CELL * height / width
    size = len(_COLUMNS) * (_CELL + _GAP) + _GAP, rows * (down + _GAP) + _HEAD
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(_GAP / size[0], 1 - 0.3 / size[1], title, fontsize=11, fontweight="bold")
    # Neighbouring numbers stand for words that have nothing to do with each other.
    colours = np.random.default_rng(0).uniform(0.1, 1, (tokenizer.vocab_size, 3))
    for row in range(rows):
        columns = (_shown(images[row]), colours[ids[row].cpu()], _shown(drawn[row]))
        columns += (abs(columns[0] - columns[2]),)
        for column, (words, pixels) in enumerate(zip(_COLUMNS, columns, strict=True)):
            left, bottom = _GAP + column * (_CELL + _GAP), (rows - 1 - row) * (down + _GAP) + _GAP
            ax = figure.add_axes((left / size[0], bottom / size[1], _CELL / size[0], down / size[1]))
            ax.set_axis_off()
            plain = column == 1 or max(height, width) < _SMALL
            ax.imshow(pixels, interpolation="nearest" if plain else "antialiased", aspect="auto")
            if row == 0:
                figure.text(left / size[0], (bottom + down + 0.06) / size[1], words, fontsize=8)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, png(figure, _DPI))
    return figure


def _decoded(tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    pixels = tokenizer.decode(ids)
    if pixels is None:
        raise ValueError("a tokenizer without a decoder has nothing to be looked at")
    return pixels


def _shown(pixels: Float[Tensor, "C h w"]) -> Float[np.ndarray, "h w 3"]:
    """As a picture in three colours."""
    chosen = pixels[: 3 if len(pixels) >= 3 else 1].expand(3, -1, -1)
    return chosen.float().clamp(0, 1).permute(1, 2, 0).numpy()
