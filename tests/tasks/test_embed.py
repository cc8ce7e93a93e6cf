"""`emae embed`: whatever the ending, the features are timm's own, in order, whole after a kill."""

import csv
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.numpy import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import EvalTransform, Reading, normalize, open_source
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.tasks import embed as module
from efficient_mae.tasks.embed import EmbedConfig, embed
from tests.forks import ForkServer

from .conftest import flags, write_images
from .labelled import write_labelled

COMMON = {"num_workers": 0, "device": "cpu", "precision": "fp32", "batch_size": 8}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = emae.create_model("mae_vit_tiny_patch4", img_size=(16, 24), in_chans=1, depth=1, decoder_depth=1)
    file = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_encoder(file, model, ImageStatistics((0.4,), (0.3,)))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "data", train=9, test=5)


def settings(weights: Path, data: Path | str, out: Path, **others: Any) -> EmbedConfig:
    return EmbedConfig(weights=str(weights), data=str(data), out=str(out), **COMMON | others)


def tokens(weights: Path, source, img_size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    """timm's, of each image."""
    encoder = emae.adapt_encoder(emae.load(weights), img_size)
    transform = EvalTransform(img_size, Reading(1))
    images = torch.stack([transform(source.image(index)) for index in range(len(source))])
    with torch.no_grad():
        return emae.to_timm(encoder).forward_features(normalize(images, (0.4,), (0.3,)))


def read(out: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Features, and what the file says of each image."""
    if out.suffix == ".parquet":
        rows = parquet.read_table(out).to_pylist()
        return np.array([row.pop("feature") for row in rows], np.float32), rows
    values = np.load(out) if out.suffix == ".npy" else load_file(out)["features"]
    with out.with_suffix(".csv").open(newline="") as stream:
        rows = [row | {"label": int(row["label"])} if "label" in row else row for row in csv.DictReader(stream)]
    return values, rows


@pytest.mark.parametrize("ending", ["parquet", "npy", "safetensors"])
@pytest.mark.parametrize("pool", ["mean", "cls", "none"])
def test_features_are_timms_in_order_with_names_and_labels(
    ending: str, pool: str, weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_AT_ONCE", 5000)  # written in several parts
    source = open_source(str(data), "test")
    out = tmp_path / f"features.{ending}"
    result = embed(settings(weights, data, out, pool=pool, part="test"))
    found, rows = read(out)
    expected = tokens(weights, source)
    pooled = {"mean": expected[:, 1:].mean(1), "cls": expected[:, 0], "none": expected[:, 1:].unflatten(1, (4, 6))}
    np.testing.assert_allclose(found, pooled[pool].numpy(), atol=1e-5, rtol=1e-5)
    assert result.shape == list(found.shape[1:]) and result.images == 15 and result.images_per_second > 0
    assert [row["name"] for row in rows] == [source.sample_name(index) for index in range(15)]
    assert [row["label"] for row in rows] == [0] * 5 + [1] * 5 + [2] * 5
    assert [row["class"] for row in rows] == ["blob"] * 5 + ["stripes"] * 5 + ["void"] * 5
    assert sorted(result.files) == sorted(path.name for path in tmp_path.iterdir()), "something is left over"


def test_any_size_and_images_without_labels(weights: Path, tmp_path: Path):
    folder = write_images(tmp_path / "plain", 5)
    (folder / "001.jpg").write_text("no image")
    out = tmp_path / "out.npy"
    result = embed(settings(weights, folder, out, img_size=(32, 8)))
    found, rows = read(out)
    (folder / "001.jpg").unlink()
    expected = tokens(weights, open_source(str(folder)), (32, 8))[:, 1:].mean(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)
    assert [list(row) for row in rows] == [["name"]] * 4
    ((name, reason),) = result.unreadable
    assert name.endswith("001.jpg") and reason == "not an image that can be read"


@pytest.mark.parametrize("ending", ["parquet", "npy", "safetensors"])
def test_broken_off_at_any_place_it_goes_on_to_the_same_bits(
    ending: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = write_images(tmp_path / "plain", 41)
    (folder / "003.png").write_text("no image")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    alone = embed(settings(weights, folder, whole / f"f.{ending}"))
    real, calls = module.features.embed, []

    def breaking(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError
        return real(*arguments, **options)

    monkeypatch.setattr(module.features, "embed", breaking)
    with pytest.raises(InterruptedError):
        embed(settings(weights, folder, cut / f"f.{ending}"))
    work = cut / f".partial-f.{ending}"
    for name, torn in (("values", b"\0" * 1001), ("indices", b"\1" * 9), ("batches.jsonl", b'{"images": 32, "ro')):
        with (work / name).open("ab") as stream:
            stream.write(torn)
    again = embed(settings(weights, folder, cut / f"f.{ending}"))
    assert "going on after 24 of 41 images" in capsys.readouterr().err and len(calls) == 4 + 3
    assert again.unreadable == alone.unreadable and again.images == 40
    files = sorted(path.name for path in whole.iterdir())
    assert files == sorted(path.name for path in cut.iterdir())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in files)


def test_killed_it_goes_on_to_the_same_bits(server: ForkServer, weights: Path, tmp_path: Path):
    given = dict(weights=weights, data="fashion-mnist-sample", batch_size=64, num_workers=1, device="cpu")
    given |= {"precision": "fp32", "pool": "cls"}
    out = tmp_path / "f.npy"
    run = server.start(["embed", *flags(**given, out=out)])
    log, deadline = tmp_path / ".partial-f.npy" / "batches.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.01)
    (second,) = server.start(["embed", *flags(**given, out=out)]).wait()
    assert second.status == 2 and second.stderr.endswith(" is at work in it; name another\n"), second.stderr
    run.kill()
    assert [one.status for one in run.wait()] == [-signal.SIGKILL]
    assert not out.exists()
    done = json.loads(log.read_bytes().splitlines()[-2])["images"]
    assert 0 < done < 10_000
    for file in (out, tmp_path / "alone.npy"):
        (ended,) = server.start(["embed", *flags(**given, out=file)]).wait()
        assert ended.status == 0, ended.stderr
        assert ("going on after" in ended.stderr) == (file == out) and "images/s" in ended.stdout
    assert out.read_bytes() == (tmp_path / "alone.npy").read_bytes()


def broken_off(monkeypatch: pytest.MonkeyPatch, given: EmbedConfig) -> None:
    """A call that is broken off in its second batch."""
    real, calls = module.features.embed, []

    def breaking(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(module.features, "embed", breaking)
        embed(given)


def test_it_goes_on_with_the_same_images_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, out = write_images(tmp_path / "plain", 20), tmp_path / "f.npy"
    broken_off(monkeypatch, settings(weights, folder, out))
    (folder / "000.png").rename(folder / "x.png")
    with pytest.raises(ValueError, match="was begun otherwise: names .* there, .* here; remove it"):
        embed(settings(weights, folder, out))
    (folder / "x.png").rename(folder / "000.png")
    embed(settings(weights, folder.rename(tmp_path / "moved"), out))
    assert "going on after 8 of 20 images" in capsys.readouterr().err and len(np.load(out)) == 20


def test_what_came_to_nothing_is_begun_anew(weights: Path, tmp_path: Path):
    folder, out = tmp_path / "deep", tmp_path / "f.npy"
    folder.mkdir()
    np.save(folder / "a.npy", np.full((20, 30), 1000, np.uint16))
    with pytest.raises(ValueError, match="--value_range says"):
        embed(settings(weights, folder, out))
    embed(settings(weights, folder, out, value_range=(0.0, 4095.0)))
    out.unlink(), out.with_suffix(".csv").unlink()
    (folder / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="none of its images can be read"):
        embed(settings(weights, folder, out))
    np.save(folder / "a.npy", np.full((20, 30), 9, np.uint8))
    assert embed(settings(weights, folder, out)).images == 1


def test_nothing_beside_it_is_overwritten(weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, beside = tmp_path / "f.npy", tmp_path / "f.csv"
    beside.write_text("somebody's own")
    with pytest.raises(ValueError, match=r"out=.*f.npy: .*f.csv, to be written beside it, is there already; remove"):
        embed(settings(weights, data, out))
    assert [path.name for path in tmp_path.iterdir()] == ["f.csv"] and beside.read_text() == "somebody's own"
    beside.unlink()
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        real = Path.replace
        patch.setattr(Path, "replace", lambda file, to: interrupt() if to == out else real(file, to))
        embed(settings(weights, data, out))
    assert beside.exists() and not out.exists()
    embed(settings(weights, data, out))  # it was its own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.npy"]


def interrupt() -> None:
    raise InterruptedError


def test_what_cannot_work_is_refused(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refused(what: str, out: str, **others: Any):
        given = {"weights": weights, "data": data, "out": tmp_path / out, **COMMON, **others}
        assert main(["embed", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]) == 2
        said = capsys.readouterr().err
        assert what in said and len([line for line in said.splitlines() if line.startswith("emae: ")]) == 1

    refused("must end in .parquet, .npy, .safetensors", "f.txt")
    refused("is no directory; make it first", "no/f.npy")
    (tmp_path / "there.npy").touch()
    refused("is there already; remove it, or name another", "there.npy")
    refused("pool=max: must be", "f.npy", pool="max")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        refused("pip install 'efficient-mae[parquet]', or write .npy or .safetensors", "f.parquet")
    broken_off(monkeypatch, settings(weights, data, tmp_path / "begun.npy"))
    refused("was begun otherwise: pool 'mean' there, 'cls' here; remove it", "begun.npy", pool="cls")
    empty = write_images(tmp_path / "empty", 2)
    for file in empty.iterdir():
        file.write_text("no image")
    refused("none of its images can be read", "empty.npy", data=empty)
