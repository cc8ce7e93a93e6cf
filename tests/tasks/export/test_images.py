"""What timm and transformers make of real images for an exported encoder, against what is evaluated here."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import AutoImageProcessor

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import EvalTransform, Reading, common_size, normalize, open_source
from efficient_mae.engine.storage.durable import save_tensors
from efficient_mae.interop import ImageStatistics, file_metadata, load_statistics
from efficient_mae.interop.files import save_encoder
from efficient_mae.interop.hf.parts import transformers_library
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.interop.conftest import STATISTICS, save_model, small_model

SIZES = {28: 7, (64, 96): 8, 224: 32, 384: 32}  # and the patches' side


def photo(width: int = 640, height: int = 427) -> Image.Image:
    """A part of a photograph."""
    return Image.fromarray(load_sample_image("china.jpg")[:height, :width])


def tile(height: int, width: int) -> Image.Image:
    return photo().resize((width, height))


def timms(folder: Path):
    vit = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return timm.data.create_transform(**timm.data.resolve_model_data_config(vit), is_training=False)


def transformers_(folder: Path):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=(folder / "hf_processor.py").exists())
    return lambda image: torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])


def pretrained(**settings) -> Path:
    """A run of one step."""
    return pretrain(PretrainConfig(**settings, epochs=1, depth=1, decoder_depth=1, num_workers=0, device="cpu"))


OTHERS = {"timm": timms, "transformers": transformers_}


def levels_apart(folder: Path, form: str, image: Image.Image, weights: Path) -> torch.Tensor:
    """Differences of the pixels, of 255 levels."""
    model, statistics = emae.load(weights), load_statistics(weights)
    ours = EvalTransform(model.config.img_size, Reading(model.config.in_chans))(image)
    ours = normalize(ours[None], statistics.mean, statistics.std)[0]
    return (OTHERS[form](folder)(image) - ours).abs() * 255 * torch.tensor(statistics.std).view(-1, 1, 1)


def exported(form: str, weights: Path, out: Path, capsys: pytest.CaptureFixture) -> str:
    assert main(["export", "--weights", str(weights), "--out", str(out), "--format", form]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("size", "patch"), SIZES.items(), ids=str)
@pytest.mark.parametrize("form", OTHERS)
def test_photographs(form: str, size, patch: int, tmp_path: Path, capsys):
    if form == "transformers" and size == (64, 96):
        pytest.skip("transformers' ViTMAE takes square images only")
    model = emae.create_model(f"mae_vit_tiny_patch{patch}", img_size=size, depth=1, decoder_depth=1)
    weights = save_model(tmp_path / "model.safetensors", model)
    said = exported(form, weights, tmp_path / "out", capsys)
    # Of one shape in four transformers' crop lies a pixel beside, and the export says so.
    images = [photo(420, 420), photo(300, 420)]
    beside = levels_apart(tmp_path / "out", form, photo(640, 427), weights).mean() > 5
    assert beside == (form == "transformers") == ("a pixel beside" in said)
    for image in images:
        apart = levels_apart(tmp_path / "out", form, image, weights)
        # PIL rounds between columns and rows, and takes first whichever is cheaper: at edges that shows.
        assert apart.max() < 10 and apart.mean() < 0.5
    assert "its transform gives the pixels that are evaluated here, to 0." in said
    # Those of the model's size: one rule can't do both, and the export says so.
    height, width = model.config.img_size
    alike = levels_apart(tmp_path / "out", form, tile(height, width), weights).max() < 1
    assert alike == (height > 224) == (f"but not for images of {width} x {height} pixels" not in said)


def write_images(folder: Path, count: int, images) -> Path:
    folder.mkdir()
    for n in range(count):
        images(n).save(folder / f"{n}.png")
    return folder


CASES = {
    28: (7, 1, lambda n: open_source("fashion-mnist-sample", "test").image(n)),
    (64, 96): (16, 3, lambda n: tile(64, 96).rotate(n)),
}


@pytest.mark.parametrize("size", CASES, ids=str)
@pytest.mark.parametrize("form", OTHERS)
def test_images_of_the_models_size_all_along(form: str, size, tmp_path: Path, capsys):
    if form == "transformers" and size == (64, 96):
        pytest.skip("transformers' ViTMAE takes square images only")
    patch, channels, images = CASES[size]
    data = write_images(tmp_path / "data", 8, images)
    out, model = str(tmp_path / "run"), f"mae_vit_tiny_patch{patch}"
    run = pretrained(data=str(data), out=out, model=model, img_size=size, in_chans=channels, batch_size=8)
    said = exported(form, run, tmp_path / "out", capsys)
    assert levels_apart(tmp_path / "out", form, images(3), run).max() < 0.01
    height, width = emae.load(run).config.img_size
    assert load_statistics(run).size == load_statistics(run / "encoder.safetensors").size == (height, width)
    assert f"but not for images of other sizes than {width} x {height}, whose middle 87.5%" in said
    # What can be given to timm for the others.
    if form == "timm":
        vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        settings = timm.data.resolve_model_data_config(vit) | {"crop_pct": 0.875}
        image = photo().convert("L" if channels == 1 else "RGB")
        ours = EvalTransform((height, width), Reading(channels))(image)
        theirs = timm.data.create_transform(**settings, normalize=False)(image)
        assert (ours.int() - theirs.int()).abs().max() <= 3


def in_mode(mode: str) -> Image.Image:
    image = photo(300, 420)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.radial_gradient("L").resize(image.size))
    elif mode == "P":
        image = image.quantize(32)
        image.info["transparency"] = 3
    return image.convert(mode)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_transformers_takes_images_in_any_mode(channels: int, tmp_path: Path, capsys):
    """Once it failed on all that aren't RGB, and made three channels of them for models of one."""
    settings = {"img_size": 32, "in_chans": channels, "depth": 1, "decoder_depth": 1}
    model = emae.create_model("mae_vit_tiny_patch8", **settings)
    statistics = ImageStatistics(STATISTICS.mean[:1] * channels, STATISTICS.std[:1] * channels)
    weights = tmp_path / "model.safetensors"
    save_tensors(weights, model.state_dict(), file_metadata(model.config, statistics))
    said = exported("transformers", weights, tmp_path / "out", capsys)
    for mode in ("L", "RGB", "RGBA", "P", "LA", "1"):
        assert levels_apart(tmp_path / "out", "transformers", in_mode(mode), weights).mean() < 0.5, mode
    assert "in mode" not in said and ("trust_remote_code=True" in said) == (channels != 3)
    # timm's transform converts nothing, and the export says so.
    said = exported("timm", weights, tmp_path / "timm", capsys)
    wanted = {1: "RGB, RGBA, P: bring them to mode L", 3: "RGBA, P: bring them to mode RGB", 4: "mode RGBA"}
    assert "but not for images in mode " in said and wanted[channels] in said


def test_a_processor_that_converts_nothing_is_named(tmp_path: Path, capsys, monkeypatch):
    weights = save_model(tmp_path / "model.safetensors", small_model())
    real = transformers_library().ViTImageProcessor

    def without(**settings):
        return real(**(settings | {"do_convert_rgb": False}))

    monkeypatch.setattr(transformers_library(), "ViTImageProcessor", without)
    said = exported("transformers", weights, tmp_path / "out", capsys)
    assert "but not for images in mode L, RGBA, P: bring them to mode RGB first, what is transparent on white" in said


def test_a_transform_that_does_something_else_is_named(tmp_path: Path, capsys, monkeypatch):
    """Were the crop, the interpolation or the statistics others, a line would say so."""
    weights = save_model(tmp_path / "model.safetensors", small_model(img_size=224))
    real = timm.data.create_transform
    for n, change in enumerate([{"crop_pct": 0.9}, {"interpolation": "bilinear"}, {"mean": (0.5,) * 3}]):
        monkeypatch.setattr(timm.data, "create_transform", lambda change=change, **kept: real(**(kept | change)))
        said = exported("timm", weights, tmp_path / f"out-{n}", capsys)
        assert "but not for images of other sizes than 224 x 224" in said, change
        assert "its transform gives" not in said


def test_channels_that_no_picture_has(tmp_path: Path, capsys):
    model = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=1, decoder_depth=1)
    encoder = emae.adapt_encoder(model, in_chans=5, channels="mean")
    statistics = type(STATISTICS)((0.5,) * 5, (0.5,) * 5)
    save_encoder(tmp_path / "encoder.safetensors", encoder, statistics)
    said = exported("timm", tmp_path / "encoder.safetensors", tmp_path / "out", capsys)
    assert "its transform can't be compared: no picture has 5 channels" in said


def test_the_one_size_of_images(tmp_path: Path):
    def size(n: int, widths: tuple[int, ...]) -> Image.Image:
        return Image.fromarray(np.full((16, widths[n % len(widths)]), n, dtype=np.uint8))

    for name, widths, expected in (("one", (24,), (16, 24)), ("two", (24, 25), None)):
        data = write_images(tmp_path / name, 4, lambda n, widths=widths: size(n, widths))
        assert common_size(open_source(str(data))) == expected
