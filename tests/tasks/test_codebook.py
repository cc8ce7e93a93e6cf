"""How a vocabulary is used, against SciPy's entropy; and the picture of tokens."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy
from torch import Tensor

from efficient_mae.methods.tokenizer import Tokenizer
from efficient_mae.tasks.codebook import codebook_use, draw_token_panel


class Levels(Tokenizer):
    """The grey of each pixel, in so many levels."""

    in_chans, vocab_size, stride, digest = 1, 16, 1, "levels"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(15.0))

    def encode(self, pixels: Tensor) -> Tensor:
        return (pixels[:, 0] * self.scale).round().long()

    def decode(self, ids: Tensor) -> Tensor:
        return (ids / self.scale)[:, None]


def test_the_figures_of_a_vocabulary():
    images = torch.rand(70, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    use = codebook_use(Levels(), images)
    counts = np.bincount((images.numpy() * 15).round().astype(int).ravel(), minlength=16)
    assert use.images == 70 and use.words == 16
    assert use.used == (counts > 0).mean() < 1
    assert use.perplexity == pytest.approx(math.exp(entropy(counts)))
    assert use.counts == sorted(counts[counts > 0], reverse=True)
    assert use.mean_squared_error == pytest.approx(
        float(np.square(images.numpy() - (images.numpy() * 15).round() / 15).mean())
    )


def test_the_picture_is_written(tmp_path: Path):
    images = torch.rand(3, 1, 8, 6)
    draw_token_panel(Levels(), images, title="words", path=tmp_path / "figures" / "panel.png")
    picture = np.array(Image.open(tmp_path / "figures" / "panel.png").convert("RGB"))
    assert picture.std() > 10 and picture.shape[0] > picture.shape[1] / 2
