"""Labelled images that a small model tells apart after a few steps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL_ENCODER = {"from_scratch": True, "model": "mae_vit_tiny_patch4", "img_size": 16, "in_chans": 1, "depth": 1}
QUICK = {"precision": "fp32", "num_workers": 0, "batch_size": 16, "log_every": 5, "crop_scale": (0.5, 1.0)}


def write_labelled(root: Path, train: int = 40, test: int = 12) -> Path:
    """Three classes of noisy 16 x 16 images: light in the middle, stripes, dark."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    patterns = {
        "blob": 220 * np.exp(-((y - 8) ** 2 + (x - 8) ** 2) / 30),
        "stripes": 110 + 100 * (y // 2 % 2),
        "void": np.zeros((16, 16)),
    }
    for split, count in (("train", train), ("val", test)):
        for label, pattern in patterns.items():
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                noisy = (pattern + rng.normal(0, 12, pattern.shape)).clip(0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(root / split / label / f"{number:03}.png")
    return root


def stop_after_checkpoints(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Break off a run when it has written so many checkpoints."""
    from efficient_mae.engine.storage import checkpoint as module

    save, written = module.save_checkpoint, []

    def stopping(*arguments, **options):
        save(*arguments, **options)
        written.append(arguments)
        if len(written) == count:
            raise InterruptedError

    monkeypatch.setattr(module, "save_checkpoint", stopping)
