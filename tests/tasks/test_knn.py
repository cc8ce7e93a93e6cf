import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import efficient_mae as emae
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.tasks.features import extract_features
from efficient_mae.tasks.knn import TEMPERATURE, KnnConfig, knn, knn_classify


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
    ours = knn_classify(torch.from_numpy(train), torch.from_numpy(labels[:300]), torch.from_numpy(test), k=20)
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
    assert (result["train_images"], result["test_images"]) == (10_000, 2_000)
    # scikit-learn on the same pixels, with plain votes of cosine neighbours, gives 0.80.
    assert result["accuracy"]["raw_pixels"] == pytest.approx(0.81, abs=0.02)
    assert 0.3 < result["accuracy"]["untrained"] < 0.8 and 0.3 < result["accuracy"]["trained"] < 0.8


def test_unlabelled_images(tmp_path, images):
    model = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=1, decoder_depth=1)
    save_encoder(tmp_path / "encoder.safetensors", model, ImageStatistics((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match="no labels"):
        knn(KnnConfig(weights=str(tmp_path / "encoder.safetensors"), data=str(images), num_workers=0))
