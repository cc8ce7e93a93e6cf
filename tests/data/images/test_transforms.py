"""Crops and pixels against torchvision's."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from efficient_mae.data import EvalTransform, PretrainTransform, Reading, default_mean_std, normalize
from efficient_mae.data.images.transforms import random_resized_crop_box
from efficient_mae.errors import InputError

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def photo(height, width, channels=3):
    """Noise over a gradient: structure at every scale."""
    rng = np.random.default_rng(height * width)
    ramp = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    pixels = (ramp + rng.integers(0, 56, (height, width, channels))).astype(np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def their_boxes(height, width, count, scale=SCALE, ratio=RATIO):
    blank = torch.empty(1, height, width)
    return np.array([tv.RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(count)])


@pytest.mark.parametrize("height, width", [(28, 28), (375, 500), (500, 200), (100, 420)])
@pytest.mark.parametrize("scale, ratio", [(SCALE, RATIO), ((0.08, 0.5), (0.5, 3.0))])
def test_crop_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    count = 3000
    theirs = their_boxes(height, width, count, scale, ratio)
    ours = np.array([random_resized_crop_box(height, width, scale, ratio, rng) for _ in range(count)])
    for boxes in (ours, theirs):
        top, left, h, w = boxes.T
        assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
        assert (top + h <= height).all() and (left + w <= width).all()

    def views(boxes):
        top, left, h, w = boxes.T
        return top, left, h, w, h * w, w / h, top + h, left + w

    for mine, reference in zip(views(ours), views(theirs), strict=True):
        assert ks_2samp(mine, reference).pvalue > 1e-4


@given(short=st.integers(1, 40), factor=st.floats(20, 200), tall=st.booleans())
def test_a_shape_that_no_crop_fits_gives_torchvisions_central_crop(short, factor, tall):
    size = (math.ceil(short * factor), short) if tall else (short, math.ceil(short * factor))
    box = random_resized_crop_box(*size, SCALE, RATIO, np.random.default_rng(0))
    assert box == tuple(their_boxes(*size, 1)[0])


@pytest.mark.parametrize("img_size", [(32, 32), (24, 56)])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_pretrain_transform_crops_resizes_and_flips(img_size, in_chans):
    image = photo(90, 120)
    transform = PretrainTransform(img_size, Reading(in_chans))
    flips = []
    for seed in range(40):
        ours = transform(image, np.random.default_rng(seed))
        assert ours.shape == (in_chans, *img_size) and ours.dtype == torch.uint8
        assert torch.equal(ours, transform(image, np.random.default_rng(seed)))
        top, left, h, w = random_resized_crop_box(90, 120, SCALE, RATIO, np.random.default_rng(seed))
        source = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[in_chans])
        theirs = F.pil_to_tensor(F.resized_crop(source, top, left, h, w, list(img_size), F.InterpolationMode.BICUBIC))

        def error(flipped, ours=ours, theirs=theirs):
            # The outermost pixels differ: torchvision's filter stops at the crop's edge.
            a, b = ours.flip(-1) if flipped else ours, theirs
            return (a[:, 4:-4, 4:-4].int() - b[:, 4:-4, 4:-4].int()).abs().max()

        assert min(error(False), error(True)) <= 2
        flips.append(bool(error(True) <= 2))
    assert 10 <= sum(flips) <= 30


def test_no_flip_when_not_wanted():
    image = photo(40, 40)
    transform = PretrainTransform((40, 40), Reading(3), scale=(1, 1), ratio=(1, 1), hflip=False)
    for seed in range(8):
        assert torch.equal(transform(image, np.random.default_rng(seed)), F.pil_to_tensor(image))


@pytest.mark.parametrize(
    "options",
    [{"scale": (0, 1)}, {"scale": (0.5, 0.2)}, {"scale": (0.2, 1.1)}, {"ratio": (2, 1)}, {"ratio": (0, 1)}],
)
def test_bounds_that_cannot_be(options):
    with pytest.raises(InputError, match=next(iter(options))):
        PretrainTransform((8, 8), Reading(3), **options)


def assert_nearly_equal(ours, theirs):
    """Equal but for rounding: PIL resizes rows or columns first, whichever is cheaper, and rounds in between."""
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 3 and difference.float().mean() < 0.4


@settings(max_examples=40, deadline=None)
@given(height=st.integers(20, 300), width=st.integers(20, 300), side=st.sampled_from([28, 96, 160, 224, 256]))
def test_eval_transform_is_resize_and_centre_crop(height, width, side):
    if (height, width) == (side, side):
        return
    image = photo(height, width)
    # What MAE publishes: nothing is cut off the shorter side above 224 pixels.
    resize = tv.Resize(int(side / (224 / 256 if side <= 224 else 1.0)), F.InterpolationMode.BICUBIC)
    theirs = F.pil_to_tensor(tv.CenterCrop(side)(resize(image)))
    assert_nearly_equal(EvalTransform((side, side), Reading(3))(image), theirs)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 640)])
@pytest.mark.parametrize("img_size", [(56, 112), (112, 56), (64, 96), (192, 256)])
def test_eval_transform_of_rectangles(size, img_size):
    image = photo(*size)
    share = 0.875 if max(img_size) <= 224 else 1.0
    theirs = create_transform((3, *img_size), interpolation="bicubic", crop_pct=share, normalize=False)
    assert_nearly_equal(EvalTransform(img_size, Reading(3))(image), theirs(image))


def test_eval_transform_leaves_the_right_size_alone():
    image = photo(28, 40, 1)
    assert torch.equal(EvalTransform((28, 40), Reading(1))(image), F.pil_to_tensor(image))


@pytest.mark.parametrize("size", [(30_000, 2), (2, 30_000), (1, 1)])
def test_extreme_shapes_stay_small(size):
    image = Image.new("RGB", size, (1, 2, 3))
    for pixels in (
        EvalTransform((64, 64), Reading(3))(image),
        PretrainTransform((64, 64), Reading(3))(image, np.random.default_rng(0)),
    ):
        assert pixels.shape == (3, 64, 64)
        assert pixels.float().mean((1, 2)).tolist() == [1, 2, 3]


def test_pixels_are_writable_and_contiguous():
    for chans in (1, 3):
        pixels = EvalTransform((8, 8), Reading(chans))(photo(8, 8, chans))
        assert pixels.is_contiguous()
        pixels.zero_()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize_is_torchvisions(channels):
    images = (
        torch.arange(2 * channels * 64, dtype=torch.int32).remainder(256).to(torch.uint8).reshape(2, channels, 8, 8)
    )
    mean, std = [0.1, 0.5, 0.9, 0.3][:channels], [0.2, 0.3, 0.4, 0.5][:channels]
    ours = normalize(images, mean, std)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.normalize(images.float() / 255, mean, std), rtol=1e-5, atol=1e-6)


def test_normalize_wants_a_number_a_channel():
    with pytest.raises(InputError, match="images with 3 channels, but 1 means"):
        normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0.5], [0.5])


def test_default_mean_std():
    assert default_mean_std(3) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert default_mean_std(1) == ((0.5,), (0.5,))
    assert default_mean_std(4) == ((0.5,) * 4, (0.5,) * 4)
