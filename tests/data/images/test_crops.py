"""Crops that are chosen before a JPEG is decoded, against crops of the whole image by Pillow."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from efficient_mae.data import OpenedImage, PretrainTransform, Reading, UnreadableImage, open_image
from efficient_mae.data.images.crops import Crop, cut

# Mean absolute difference, of 255, to a crop of the image decoded whole; 1.65 is the most that was seen.
NEAR = 1.8


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, "subsampling": "4:2:0", **options})
    return file.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph of 1280 x 854 pixels."""
    return Image.fromarray(load_sample_image("china.jpg")).resize((1280, 854), Image.Resampling.BICUBIC)


def of_the_whole(data: bytes, crop: Crop, mode: str, size: tuple[int, int]) -> torch.Tensor:
    """The crop by Pillow alone, of the whole upright image."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    pixels = np.array(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box))
    pixels = pixels[:, ::-1] if crop.flip else pixels
    return torch.from_numpy(pixels.copy()).reshape(*size, -1).permute(2, 0, 1)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.float() - theirs.float()).abs().mean().item()


@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 60}])
def test_crops_are_those_of_the_whole_image(photo: Image.Image, in_chans: int, options: dict):
    data = jpeg(photo, **options)
    transform = PretrainTransform((96, 96), Reading(in_chans))
    for seed in range(6):
        crop = transform.draw(photo.size, np.random.default_rng(seed))
        assert crop.reduction(96, 96) >= 2
        ours = transform.crops(open_image(data, "x"), [np.random.default_rng(seed)])[0]
        assert difference(ours, of_the_whole(data, crop, {1: "L", 3: "RGB", 4: "RGBA"}[in_chans], (96, 96))) < NEAR


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1280, 848), (1275, 849)])
def test_orientation_is_respected_at_any_scale(photo: Image.Image, orientation: int, size: tuple[int, int]):
    """Sizes that the reduction divides, and sizes that leave part of a pixel at an end."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo.crop((0, 0, *size)), exif=exif)
    image = open_image(data, "x")
    assert image.size == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    width, height = image.size
    for top, left in ((0, 0), (height - 640, width - 704), (3, 5)):
        crop = Crop(top, left, 640, 704, flip=False)
        for out, reduction in ((50, 8), (100, 4), (200, 2), (400, 1)):
            assert crop.reduction(out, out) == reduction
            ours = cut(open_image(data, "x"), [crop], Reading(3), (out, out))[0]
            assert difference(ours, of_the_whole(data, crop, "RGB", (out, out))) < NEAR


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), out=st.sampled_from([(224, 224), (28, 112)]))
def test_never_below_the_wanted_resolution(height: int, width: int, out: tuple[int, int]):
    reduction = Crop(0, 0, height, width, flip=False).reduction(*out)
    assert reduction == 1 or (height / reduction >= 1.5 * out[0] and width / reduction >= 1.5 * out[1])
    assert reduction == 8 or height < 3 * reduction * out[0] or width < 3 * reduction * out[1]


def test_only_as_much_is_decoded_as_is_needed(photo: Image.Image):
    data = jpeg(photo)
    for reduction, size in ((1, (1280, 854)), (2, (640, 427)), (4, (320, 214)), (8, (160, 107))):
        for image in (open_image(data, "x"), open_image(jpeg(photo.convert("L")), "x")):
            assert image.decode(3, reduction).image.size == size
            assert image.decode(1, 1).image.size == photo.size  # and again at another scale


def test_repeats_are_the_crops_one_by_one(photo: Image.Image):
    small = photo.resize((320, 214))
    transform = PretrainTransform((224, 224), Reading(3))  # nothing to reduce: the same pixels to the bit
    together = transform.crops(open_image(jpeg(small), "x"), [np.random.default_rng(s) for s in range(4)])
    for seed, crop in enumerate(together):
        assert torch.equal(crop, transform.crops(open_image(jpeg(small), "x"), [np.random.default_rng(seed)])[0])
        assert torch.equal(crop, transform(Image.open(io.BytesIO(jpeg(small))), np.random.default_rng(seed)))


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_other_colours(photo: Image.Image, mode: str):
    data = jpeg(photo.convert(mode))
    crop = Crop(10, 20, 700, 900, flip=True)
    for chans, wanted in ((1, "L"), (3, "RGB")):
        whole = of_the_whole(jpeg(photo), crop, mode="L" if mode == "L" else "RGB", size=(64, 64))
        ours = cut(open_image(data, "x"), [crop], Reading(chans), (64, 64))[0]
        if chans == 1 or mode == "L":
            whole = of_the_whole(jpeg(photo), crop, "L", (64, 64))
        assert ours.shape == (chans, 64, 64), wanted
        assert difference(ours, whole.expand_as(ours)) < (6 if mode == "CMYK" else NEAR)


def test_camera_files_of_several_pictures(photo: Image.Image):
    file = io.BytesIO()
    photo.save(file, "MPO", save_all=True, append_images=[photo.rotate(180)], quality=90)
    image = open_image(file.getvalue(), "x")
    crop = Crop(10, 20, 700, 900, flip=False)
    assert image.decode(3, 4).image.size == (320, 214)
    ours = cut(open_image(file.getvalue(), "x"), [crop], Reading(3), (100, 100))[0]
    assert difference(ours, of_the_whole(jpeg(photo), crop, "RGB", (100, 100))) < NEAR


def test_a_file_cut_short_is_found_when_decoded(photo: Image.Image):
    image = open_image(jpeg(photo)[:20_000], "folder/a.jpg")
    assert image.size == photo.size
    for reduction in (8, 1):
        with pytest.raises(UnreadableImage, match="folder/a.jpg: image file is truncated"):
            image.decode(3, reduction)


def test_images_without_a_file_have_their_pixels():
    image = OpenedImage(Image.new("L", (9, 5), 7), "x")
    assert (image.size, image.num_bytes, image.jpeg) == ((9, 5), 0, None)
    assert image.decode(3, 8).image.getpixel((8, 4)) == (7, 7, 7)
