"""Images with label maps, in ADE20K's folders, that a small model learns after a few steps."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("canvas", "disc", "stripes")
SMALL = {
    "from_scratch": True, "model": "mae_vit_tiny_patch8", "depth": 2, "in_chans": 3, "img_size": 32,
    "head_width": 16, "aux_width": 8, "reduce_zero_label": True, "batch_size": 8, "precision": "fp32",
    "num_workers": 0, "device": "cpu", "log_every": 5, "drop_path": 0.0, "dropout": 0.0,
}  # fmt: skip


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (h, w, 3) and labels (h, w): a red disc and blue stripes on a green canvas, and a border of no class."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([40 + 0 * x, 130 + 0 * x, 60 + 0 * x], axis=-1) + rng.normal(0, 12, (height, width, 3))
    labels = np.ones((height, width), np.uint8)
    top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
    box = (y >= top) & (y < top + height // 3) & (x >= left) & (x < left + width // 3)
    pixels[box] = np.array([20, 30, 90]) + 120 * ((x[box] // 2) % 2)[:, None] * np.array([0, 0.2, 1])
    labels[box] = 3
    cy, cx = rng.uniform(0.3, 0.9, 2) * (height, width)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < (height / 5) ** 2
    pixels[disc], labels[disc] = (220, 60, 40), 2
    labels[:2] = 0
    return pixels.clip(0, 255).astype(np.uint8), labels


def write_mapped(root: Path, train: int = 24, test: int = 6) -> Path:
    """Scenes of several sizes as PNG, and their label maps with a palette or grey in turn."""
    rng = np.random.default_rng(0)
    for part, count in (("training", train), ("validation", test)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            height, width = ((40, 48), (48, 40), (44, 44))[number % 3]
            pixels, labels = scene(rng, height, width)
            Image.fromarray(pixels).save(root / "images" / part / f"{number:03}.png")
            picture = Image.fromarray(labels)
            if number % 2:
                picture.putpalette([7 * n % 256 for n in range(768)])
            picture.save(root / "annotations" / part / f"{number:03}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
