"""What the images of a source are, and what is made of them for a model: in words, since it is done in silence."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import numpy as np

from efficient_mae.data.images.decode import MODES, OpenedImage, UnreadableImage, damage_named
from efficient_mae.data.images.reading import Reading, UnsuitedError
from efficient_mae.data.sources.registry import Source
from efficient_mae.data.sources.subset import spread
from efficient_mae.errors import InputError

# Images that are looked at, evenly spread over the source: JPEGs by their headers alone.
_LOOKED_AT = 32
# Of those that can't be used, as many are opened to say what they hold, in their middle of this side in pixels.
_MEASURED, _SIDE = 8, 1024
# What a person calls PIL's modes; others go by PIL's name.
_KINDS = {"L": "grey", "YCbCr": "RGB"}


@dataclass(frozen=True)
class ImageSummary:
    """What some images are and what is made of them.

    Attributes:
        text: on one line, to stand by itself.
        enlarged: share of them that are smaller, along a side, than what is made of them; of a crop more is made.
        made_up: whether channels are made that some of them don't have.
    """

    text: str
    enlarged: float
    made_up: bool


def describe_images(
    source: Source, reading: Reading, img_size: tuple[int, int], crop_scale: tuple[float, float] | None = None
) -> ImageSummary:
    """Look at some images of a source.

    Args:
        reading: how they are read.
        img_size: (height, width) in pixels that the model takes.
        crop_scale: share of an image's area that random crops of it cover, where such are taken.
    """
    sizes, kinds = [], Counter[str]()
    for image in _looked_at(source):
        with suppress(UnreadableImage):
            raster = image.numbers(reading.max_megapixels)
            kinds[_KINDS.get(image.mode, image.mode) if raster is None else raster.kind] += 1
            sizes.append(image.size)
    if not sizes:
        return ImageSummary(
            f"none of {min(len(source), _LOOKED_AT)} images that were looked at can be read", 0.0, False
        )
    channels, (height, width) = reading.in_chans, img_size
    made = MODES.get(channels, f"{channels} channels")
    kind = _KINDS.get(made, made)
    factors = [max(height / h, width / w) for w, h in sizes]
    larger = [factor for factor in factors if factor > 1]
    names = [name for name, _ in kinds.most_common()]
    text = f"images of {_span(sizes)}, {_listed(names)}, {_resizing(factors, larger, f'{width:,} x {height:,}')}"
    others = [name for name in names if name != kind]
    if reading.bands is not None:
        named = _listed(list(map(str, reading.bands)))
        text += (
            f", of which bands {named} are taken" if len(reading.bands) > 1 else f", of which band {named} is taken"
        )
    elif others:
        text += f" and made {kind}" + (f" where they are {_listed(others)}" if kind in names else "")
    if reading.value_range is not None:
        pairs = [f"{low:g} to {high:g}" for low, high in dict.fromkeys(reading.pairs)]
        text += f"; numbers of more than 8 bits are seen from {_listed(pairs[:3])}{', ...' if len(pairs) > 3 else ''}"
    if crop_scale is not None and crop_scale[0] < 1:
        text += f"; crops of {crop_scale[0]:.0%} to {crop_scale[1]:.0%} of their area are brought to that size"
    invented = channels > 1 and any(name == "grey" or channels == 4 for name in others)
    return ImageSummary(text, len(larger) / len(factors), invented)


def common_size(source: Source) -> tuple[int, int] | None:
    """(height, width) in pixels that all images have which are looked at, or None where they differ."""
    sizes = {image.size for image in _looked_at(source)}
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return height, width


def _looked_at(source: Source) -> Iterator[OpenedImage]:
    """Some images of a source; of those, the readable ones."""
    sample = spread(source, _LOOKED_AT)
    for index in range(len(sample)):
        with suppress(UnreadableImage):
            yield sample.open(index)


def refuse_unsuited(source: Source, reading: Reading) -> None:
    """Look at some images, and refuse data of which one can't be read so, with what was seen in it and others.

    Raises:
        InputError: with the setting that would do.
    """
    unsuited: dict[str, str] = {}
    lows, highs = [], []
    for image in _looked_at(source):
        try:
            image.raster(reading)
        except UnreadableImage as error:
            if not isinstance(error.__context__, UnsuitedError):
                continue  # damaged, to be named when it is read
            unsuited[error.name] = error.reason
            if len(unsuited) <= _MEASURED and (raster := image.numbers(reading.max_megapixels)) is not None:
                width, height = (min(_SIDE, side) for side in raster.size)
                left, top = (raster.size[0] - width) // 2, (raster.size[1] - height) // 2
                with suppress(UnreadableImage), damage_named(image.name):
                    part = raster.window(top, left, height, width)
                    lows.append(np.nanmin(part))
                    highs.append(np.nanmax(part))
    if unsuited:
        name, reason = next(iter(unsuited.items()))
        seen = f"; in {len(lows)} of them numbers from {min(lows):g} to {max(highs):g} were seen" if lows else ""
        others = f" (and {len(unsuited) - 1} others of {min(len(source), _LOOKED_AT)} looked at)"
        raise InputError(f"{name}{others * (len(unsuited) > 1)}: {reason}{seen}")


def _resizing(factors: list[float], larger: list[float], wanted: str) -> str:
    if not larger:
        return "are left in their size" if set(factors) == {1} else f"are reduced to {wanted}"
    times = f"{min(larger):.1f}" if max(larger) - min(larger) < 0.05 else f"{min(larger):.1f} to {max(larger):.1f}"
    if len(larger) == len(factors):
        return f"are enlarged {times} times to {wanted}"
    return f"are brought to {wanted} ({len(larger)} of {len(factors)} looked at enlarged {times} times)"


def _span(sizes: list[tuple[int, int]]) -> str:
    """The one size, or the smallest and the largest by area, and the median sides."""
    if len(set(sizes)) == 1:
        return "{:,} x {:,}".format(*sizes[0])
    least, most = (pick(sizes, key=lambda size: (size[0] * size[1], size)) for pick in (min, max))
    middle = [int(median(sides)) for sides in zip(*sizes, strict=True)]
    return "{:,} x {:,} to {:,} x {:,} (median {:,} x {:,})".format(*least, *most, *middle)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
