import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import efficient_mae as emae
from efficient_mae.data import OpenedImage, Source
from efficient_mae.data.sources import registry
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.tasks.classify import knn as module
from efficient_mae.tasks.classify import neighbours
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.classify.neighbours import TEMPERATURE, Neighbours
from efficient_mae.tasks.features import extract_features

from ..labelled import write_labelled


class Noise:
    """RGB noise that is made when it is read, so that it takes no memory; every `flaw`th image lacks its label."""

    def __init__(self, name: str, count: int, side: int, flaw: int | None = None):
        self.name, self.classes, self.why_unlabelled = name, ("a", "b", "c"), ""
        self._count, self._side, self._flaw = count, side, flaw

    def __len__(self) -> int:
        return self._count

    def open(self, index: int) -> OpenedImage:
        return OpenedImage(self.image(index), self.sample_name(index))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (self._side, self._side, 3), np.uint8))

    def label(self, index: int) -> int | None:
        return None if self._flaw and index % self._flaw == self._flaw - 1 else index % 3

    def sample_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


def tiny(folder: Path, side: int, in_chans: int = 3) -> dict[str, Any]:
    """Settings of `emae knn` with an encoder that was never trained."""
    name = f"mae_vit_tiny_patch{side // 4}"
    model = emae.create_model(name, img_size=side, in_chans=in_chans, depth=1, decoder_depth=1)
    save_encoder(folder / "tiny.safetensors", model, ImageStatistics((0.5,) * in_chans, (0.5,) * in_chans))
    common = {"num_workers": 0, "device": "cpu", "precision": "fp32"}
    return {"weights": str(folder / "tiny.safetensors"), "k": 5, "batch_size": 32, **common}


def offer(monkeypatch: pytest.MonkeyPatch, train: Source, test: Source) -> str:
    """The name by which `--data` finds these images."""
    monkeypatch.setitem(registry.NAMED, "offered", lambda split: train if split == "train" else test)
    return "offered"


def test_votes_are_scikit_learns():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, 12))
    labels = rng.integers(0, 7, 900)
    features = (centres[labels] + rng.normal(size=(900, 12)) * 1.5).astype(np.float32)
    train, test = features[:300], features[300:]
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )
    expected = reference.fit(train, labels[:300]).predict(test)
    found = Neighbours(torch.from_numpy(test), k=20)
    for part in np.split(np.arange(300), [7, 8, 150]):
        found.show(torch.from_numpy(train[part]), torch.from_numpy(labels[part]))
    ours = found.votes(7).argmax(dim=1)
    assert (ours.numpy() == expected).mean() > 0.998  # a vote may be a tie within rounding
    assert 0.5 < (ours.numpy() == labels[300:]).mean() < 0.99, "too easy or too hard to tell"


def test_pools():
    model = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=1, decoder_depth=1).backbone
    images = torch.randn(3, 3, 32, 32)
    tokens = model.forward_features(images)
    torch.testing.assert_close(extract_features(model, images, "token"), tokens[:, 0])
    torch.testing.assert_close(extract_features(model, images, "avg"), tokens[:, 1:].mean(dim=1))
    with pytest.raises(ValueError, match="pool='max'"):
        extract_features(model, images, "max")


def test_an_encoder_that_was_never_trained(tmp_path):
    torch.manual_seed(5)
    model = emae.create_model("mae_vit_tiny_patch7", img_size=28, in_chans=1, depth=1, decoder_depth=1)
    save_encoder(tmp_path / "encoder.safetensors", model, ImageStatistics((0.5,), (0.5,)))
    settings = {"weights": str(tmp_path / "encoder.safetensors"), "num_workers": 0, "precision": "fp32"}
    with pytest.raises(ValueError, match="give --data"):
        knn(KnnConfig(**settings))
    result = knn(KnnConfig(**settings, data="fashion-mnist-sample"))
    assert (result.train_images, result.test_images) == (10_000, 2_000)
    # scikit-learn on the same pixels, with plain votes of cosine neighbours, gives 0.80.
    assert result.accuracy.raw_pixels == pytest.approx(0.81, abs=0.02)
    assert 0.3 < result.accuracy.untrained < 0.8 and 0.3 < result.accuracy.trained < 0.8


def test_unlabelled_images(tmp_path, images):
    with pytest.raises(ValueError, match="no labels"):
        knn(KnnConfig(**tiny(tmp_path, 16), data=str(images)))


@pytest.mark.parametrize(("train_flaw", "test_flaw"), [(7, None), (None, 7)])
def test_images_of_which_some_have_no_label(tmp_path, monkeypatch, train_flaw, test_flaw):
    """Hugging Face's test parts hold -1: a crash among the training images, wrong answers among the others."""
    data = offer(monkeypatch, Noise("train", 60, 16, train_flaw), Noise("test", 30, 16, test_flaw))
    part, count = ("train", "8 of 60") if train_flaw else ("test", "4 of 30")
    with pytest.raises(ValueError, match=rf"data=offered: {count} images have no label, the first {part}\[6\]"):
        knn(KnnConfig(**tiny(tmp_path, 16), data=data))


def test_memory_does_not_grow_with_the_training_images(tmp_path, monkeypatch):
    """1,200 of them are 32 MiB as bytes and 127 MiB as floats; twice that was taken when they were held."""
    settings, taken = tiny(tmp_path, 96), []
    for count in (64, 1200):
        data = offer(monkeypatch, Noise("train", count, 96), Noise("test", 64, 96))
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except OSError:
            pytest.skip("the kernel doesn't tell")
        before = _kilobytes("VmRSS")
        knn(KnnConfig(**settings, data=data))
        taken.append(_kilobytes("VmHWM") - before)
    assert taken[1] < 128 * 1024 and taken[1] - taken[0] < 40 * 1024, taken


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_held_out_pixels_that_are_searched_in_parts(tmp_path, monkeypatch, capsys):
    """In parts and in blocks, each image gets the class that it gets among all; unreadable images are told of."""
    data = write_labelled(tmp_path / "data")
    (data / "val" / "blob" / "003.png").write_text("no image")
    (data / "train" / "void" / "000.png").write_text("no image")
    settings = tiny(tmp_path, 16, in_chans=1) | {"data": str(data)}
    whole = knn(KnnConfig(**settings))
    assert (whole.train_images, whole.test_images) == (119, 35)
    assert 0.4 < whole.accuracy.raw_pixels < 0.9, "too easy or too hard to tell"
    said = capsys.readouterr().err
    assert "left out 1 of 120 training images" in said and "left out 1 of 36 held-out images" in said
    monkeypatch.setattr(module, "HELD_PIXELS", 10 * 16 * 16)
    monkeypatch.setattr(neighbours, "_VALUES", 3 * 16 * 16)
    assert knn(KnnConfig(**settings)) == whole
    assert "raw pixels: held-out images in 4 parts" in capsys.readouterr().err


def test_more_neighbours_than_images(tmp_path):
    data = write_labelled(tmp_path / "data", train=2, test=2)
    settings = tiny(tmp_path, 16, in_chans=1) | {"data": str(data)}
    with pytest.raises(ValueError, match="k=7: must lie between 1 and the 6 training images"):
        knn(KnnConfig(**settings | {"k": 7}))
    (data / "train" / "void" / "000.png").write_text("no image")
    with pytest.raises(ValueError, match="k=6: must lie between 1 and the 5 training images"):
        knn(KnnConfig(**settings | {"k": 6}))
