"""`emae probe`: encoders, compared on the same images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import open_labelled
from efficient_mae.data.sources.labelled import labels_of
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.tasks.classify.probe.images import draw_subsets
from efficient_mae.tasks.classify.probe.judges import RIDGE_STRENGTHS
from efficient_mae.tasks.classify.probe.record import check_same_images, read_record
from efficient_mae.tasks.features import extract_features

from ...conftest import flags, write_images
from ...labelled import write_labelled

QUICK = {"num_workers": 0, "device": "cpu", "precision": "fp32", "labels": 30, "subsets": 3, "folds": 3, "k": 5}


def write_encoder(file: Path, seed: int, patch: int = 4) -> str:
    torch.manual_seed(seed)
    shape = {"img_size": 16, "in_chans": 1, "depth": 1, "decoder_depth": 1, "mask_ratio": 0.5}
    model = emae.create_model(f"mae_vit_tiny_patch{patch}", **shape)
    save_encoder(file, model, ImageStatistics((0.5,), (0.25,)))
    return str(file)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images, and encoders that were never trained."""
    folder = tmp_path_factory.mktemp("probe")
    write_labelled(folder / "data")
    for seed in range(2):
        write_encoder(folder / f"a-{seed}.safetensors", seed)
        write_encoder(folder / f"b-{seed}.safetensors", seed, patch=8)
    return folder


def probe(there: Path, *names: str, **settings: Any):
    weights = [str(there / name) for name in names]
    return emae.probe(**{"weights": weights, "data": there / "data", **QUICK, **settings})


def test_two_encoders_and_what_stands_beside_them(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ("a-0.safetensors", "b-0.safetensors")
    file = tmp_path / "right.safetensors"
    found = probe(there, *names, baselines=True, out=file)
    rows = {row.encoder: row for row in found.encoders}
    first, second = (str(there / name) for name in names)
    pixels = "raw pixels, 1 x 16 x 16"
    assert [*rows] == [first, second, f"untrained, like {first}", f"untrained, like {second}", pixels]
    assert (rows[first].width, rows[pixels].width, found.test_images) == (192, 256, 36)
    assert {*rows[first].judgements} == {"ridge", "logistic", "knn"} and len(found.pairs) == 3 * 10
    for row in found.encoders:
        for judgement in row.judgements.values():
            assert judgement.accuracy.mean == pytest.approx(np.mean(judgement.accuracies))
            assert judgement.accuracy.low <= judgement.accuracy.mean <= judgement.accuracy.high
    for pair in found.pairs:
        means = [rows[name].judgements[pair.judge].accuracy.mean for name in (pair.first, pair.second)]
        assert pair.difference.mean == pytest.approx(means[1] - means[0]) and pair.p_holm >= pair.difference.p
    again = probe(there, *names, baselines=True, out=file)
    assert again == found
    # One alone has the same label subsets.
    assert probe(there, names[1]).encoders[0] == rows[second]
    capsys.readouterr()
    given = {**QUICK, "weights": f"[{first},{second}]", "data": there / "data", "baselines": "true", "out": file}
    assert main(["probe", *flags(**given), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.plain()
    assert main(["probe", *flags(**given)]) == 0
    assert "Holm" in capsys.readouterr().out
    record = read_record(file)
    mean = rows[first].judgements["ridge"].accuracy.mean
    assert record.right[first]["ridge"].shape == (1, 3, 36) and record.right[first]["ridge"].mean() == pytest.approx(
        mean
    )


def test_ridge_of_an_encoder_by_hand(there: Path):
    found = probe(there, "a-0.safetensors", judges=["ridge"]).encoders[0].judgements["ridge"]
    data = open_labelled(str(there / "data"))
    labels, asked = labels_of(data.train), labels_of(data.test)
    encoder = emae.load(there / "a-0.safetensors")
    parts = []
    for part in (data.train, data.test):
        pixels = np.stack([np.asarray(part.image(index)) for index in range(len(part))])[:, None] / 255
        parts.append(extract_features(encoder, torch.from_numpy((pixels - 0.5) / 0.25).float()).double().numpy())
    for place, subset in enumerate(draw_subsets(data, 30, 3, 0)):
        assert len(set(subset)) == 30 and np.bincount(labels[subset]).tolist() == [10, 10, 10]
        scaler = StandardScaler().fit(parts[0][subset])
        reference = RidgeClassifierCV(RIDGE_STRENGTHS).fit(scaler.transform(parts[0][subset]), labels[subset])
        right = (reference.predict(scaler.transform(parts[1])) == asked).mean()
        assert found.accuracies[0][place] == pytest.approx(right, abs=1.01 / 36)
        assert found.strengths is not None and found.strengths[0][place] == reference.alpha_


def test_seeds_of_an_encoder_are_judged_together(there: Path):
    both = probe(there, "a-*.safetensors", "b-*.safetensors", judges=["knn"])
    assert [row.seeds for row in both.encoders] == [2, 2] and both.pairs[0].mcnemar is None
    alone = [probe(there, f"a-{seed}.safetensors", judges=["knn"]).encoders[0] for seed in range(2)]
    assert both.encoders[0].judgements["knn"].accuracies == [one.judgements["knn"].accuracies[0] for one in alone]
    with pytest.raises(ValueError, match="each encoder needs as many seeds as the others"):
        probe(there, "a-*.safetensors", "b-0.safetensors")
    with pytest.raises(ValueError, match="nothing matches this pattern"):
        probe(there, "c-*.safetensors")


@pytest.mark.parametrize(("pool", "width"), [("token", 192), ("grid2", 768), ("blocks", 192)])
def test_pools(there: Path, pool: str, width: int):
    assert probe(there, "a-0.safetensors", pool=pool, judges=["knn"]).encoders[0].width == width


def test_features_of_quarters_and_blocks():
    model = emae.create_model("mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=5, decoder_depth=1).backbone
    images = torch.randn(2, 1, 16, 16)
    tokens = model.forward_every(images)[:, :, 1:]
    quarters = extract_features(model, images, "grid2").view(2, 192, 2, 2)
    last = tokens[-1].unflatten(1, (4, 4))
    torch.testing.assert_close(quarters[:, :, 0, 1], last[:, :2, 2:].mean(dim=(1, 2)))
    blocks = extract_features(model, images, "blocks").view(2, 4, 192)
    torch.testing.assert_close(blocks, tokens[-4:].mean(dim=2).movedim(0, 1))


def test_all_labels_at_once(there: Path):
    found = probe(there, "a-0.safetensors", labels=None, judges=["knn"])
    assert (found.labels, found.subsets) == (120, 1)


def test_what_the_user_can_mend(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one_class = tmp_path / "one"
    for part in ("train", "val"):
        write_images(one_class / part / "a", 12)
    unlabelled = write_images(tmp_path / "bare", 12)
    rare = tmp_path / "rare"
    for part, count in (("train", 95), ("val", 12)):
        write_images(rare / part / "a", count)
        write_images(rare / part / "b", 5)
    for part, count in (("train", 1), ("val", 12)):
        for name in "ab":
            write_images(tmp_path / "single" / part / name, count)
    single = {"data": tmp_path / "single", "k": 1}
    weights = there / "a-0.safetensors"
    for changed, said in (
        ({"data": unlabelled}, "has no labels"),
        ({"data": one_class}, "all 12 images are of one class"),
        ({"data": rare, "labels": 20}, "labels=20: a subset of so few has no two classes of two images; give more"),
        (single, "labels=30: class 'a' has a single training image"),
        ({**single, "labels": "null"}, "labels=2: a subset of so few has no two classes of two images"),
        (
            {"folds": 11},
            "folds=11: must lie between 2 and the 10 images of the largest class of a subset",
        ),
        ({"folds": 1}, "folds=1: must lie between 2"),
        ({"k": 31}, "k=31: must lie between 1 and the 30 labelled images of a subset"),
        ({"labels": 119}, "labels=119: must lie between 3 and 117"),
        ({"labels": 2}, "labels=2: must lie between 3 and 117"),
        ({"weights": "/nowhere"}, "/nowhere: no such file or directory"),
        ({"out": tmp_path / "right.npz"}, "must end in .safetensors"),
    ):
        assert main(["probe", *flags(**{"weights": weights, "data": there / "data", **QUICK, **changed})]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert said in error, error


def test_other_images_are_no_comparison(there: Path, tmp_path: Path):
    """An image of 6 pixels can be read by patches of 4, and not by those of 8."""
    write_labelled(tmp_path / "data", train=40, test=40)
    from PIL import Image

    Image.new("L", (6, 6)).save(tmp_path / "data" / "val" / "blob" / "000.png")
    with pytest.raises(ValueError, match="can read different held-out images, 120 and 119"):
        probe(there, "a-0.safetensors", "b-0.safetensors", data=tmp_path / "data", judges=["knn"])
    records = {}
    for seed in range(2):
        file = tmp_path / f"{seed}.safetensors"
        probe(there, "a-0.safetensors", seed=seed, judges=["knn"], out=file)
        records[str(seed)] = read_record(file)
    check_same_images({"0": records["0"], "same": records["0"]})
    with pytest.raises(ValueError, match="0 and 1 were judged on different images or label subsets"):
        check_same_images(records)
    (tmp_path / "text.safetensors").write_text("Dear")
    with pytest.raises(ValueError, match="isn't what emae probe --out writes"):
        read_record(tmp_path / "text.safetensors")


def test_answers_of_earlier_versions_are_read(tmp_path: Path):
    right = torch.rand(2, 3, 21) < 0.5
    head = json.dumps({"images": "a digest", "rows": ["a"]})
    save_file({"0/ridge": right}, tmp_path / "right.safetensors", {"efficient_mae_probe": head})
    record = read_record(tmp_path / "right.safetensors")
    assert record.images == "a digest" and np.array_equal(record.right["a"]["ridge"], right.numpy())
    save_file({"0/ridge": right.float()}, tmp_path / "other.safetensors", {"efficient_mae_probe": head})
    with pytest.raises(ValueError, match="isn't what emae probe --out writes"):
        read_record(tmp_path / "other.safetensors")
