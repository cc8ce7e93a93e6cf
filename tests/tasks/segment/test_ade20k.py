"""A dry run on ADE20K's layout, with images of its sizes and its 150 classes, through the command line alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficient_mae.cli import main

from ..conftest import flags

# Most of ADE20K's images are of 683 x 512 pixels or so; some are much larger, and a few tall.
SIZES = {"training": [(683, 512), (512, 683), (2000, 1500), (256, 256)], "validation": [(683, 512), (1500, 2000)]}
# As in its own list: synonyms with commas, and spaces at the end.
NAMES = [f"thing {number}, kind of {number}" + " " * (number % 7 == 0) for number in range(1, 151)]
SMALL = {
    "from_scratch": "true", "model": "mae_vit_tiny_patch16", "depth": 1, "head_width": 16, "aux_width": 8,
    "epochs": 1, "batch_size": 2, "base_lr": 0.01, "precision": "fp32", "num_workers": 0, "device": "cpu",
}  # fmt: skip


def write_ade20k(root: Path) -> Path:
    """What ADEChallengeData2016.zip unpacks to: JPEG images, grey label maps of 0 (other) to 150, and its lists."""
    rng = np.random.default_rng(0)
    for part, sizes in SIZES.items():
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes, 1):
            # Patches of a class each; all classes are in every map, and some pixels are other.
            classes = np.resize(rng.permutation(151), (14, 11))
            labels = np.kron(classes, np.ones((-(-height // 14), -(-width // 11))))[:height, :width].astype(np.uint8)
            pixels = np.stack([labels, 255 - labels, 7 * labels], axis=-1)
            name = f"ADE_{part[:5] if part == 'training' else 'val'}_{number:08d}"
            Image.fromarray(pixels).save(root / "images" / part / f"{name}.jpg")
            Image.fromarray(labels).save(root / "annotations" / part / f"{name}.png")
    rows = [f"{number}\t0.0066\t4\t2\t{name}" for number, name in enumerate(NAMES, 1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 misc\n")
    return root


def test_from_segment_to_predict_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, run, maps = write_ade20k(tmp_path / "ADEChallengeData2016"), tmp_path / "run", tmp_path / "maps"
    assert main(["segment", *flags(data=data, out=run, reduce_zero_label="true", **SMALL)]) == 0
    result = json.loads((run / "results.json").read_text())
    assert result["classes"] == [name.strip() for name in NAMES]
    assert (result["train_images"], result["test_images"], result["damaged"]) == (4, 2, {})
    capsys.readouterr()
    how = flags(device="cpu", precision="fp32", num_workers=0, batch_size=2)
    assert main(["predict", *flags(weights=run, data=data, part="test", out=maps), *how, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], len(said["classes"]), said["first_label"]) == (2, 150, 1)
    right = labelled = 0
    confusion = np.zeros((150, 150), int)
    for file in sorted((data / "annotations" / "validation").iterdir()):
        truth, found = np.asarray(Image.open(file)), np.asarray(Image.open(maps / file.name))
        assert found.shape == truth.shape and found.dtype == np.uint8 and 1 <= found.min() <= found.max() <= 150
        right, labelled = right + ((found == truth) & (truth > 0)).sum(), labelled + (truth > 0).sum()
        np.add.at(confusion, (truth[truth > 0].astype(int) - 1, found[truth > 0].astype(int) - 1), 1)
    assert sorted(file.name for file in maps.glob("*.png")) == ["ADE_val_00000001.png", "ADE_val_00000002.png"]
    assert result["confusion"] == confusion.tolist() and all(share is not None for share in result["accuracy"])
    assert result["pixel_accuracy"] == pytest.approx(right / labelled, abs=1e-6)
    assert main(["report", "--run", str(run)]) == 0
    (classes,) = re.findall(r'<section id="classes">(.*?)</section>', (run / "report.html").read_text(), re.S)
    assert len(re.findall("<tr><td>", classes)) == 150 and all(name.strip() in classes for name in NAMES)
    for name in ("confusion.png", "figures/predictions.png"):
        assert min(Image.open(run / name).size) > 200
