"""Images that can't be read, and so are left out of a judgement: named, counted, and refused where they are many."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from efficient_mae.console import say
from efficient_mae.data import DataChoice, EvalTransform, Source, UnreadableImage, open_held_out, spread
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.storage.damage_log import refuse_unreadable
from efficient_mae.errors import InputError


def held_out_images(data: str, choice: DataChoice, transform: EvalTransform, most: int) -> tuple[Tensor, str]:
    """Readable images to look at, (B, C, h, w), evenly spread over held-out ones if there are any; and their part.

    Raises:
        InputError: the source cannot be opened, or none of the images can be read.
    """
    source, split = open_held_out(data, choice)
    images = readable_images(source, transform, most)
    if not images:
        raise InputError(f"data={data}: none of the images looked at can be read")
    return torch.stack(images), split


def readable_images(source: Source, transform: EvalTransform, most: int) -> list[Tensor]:
    """Of so many images, evenly spread over a source, those that can be read; each (C, h, w)."""
    sample, images = spread(source, most), []
    for index in range(len(sample)):
        with suppress(UnreadableImage):
            images.append(transform(sample.open(index)))
    return images


def gather_left_out(
    source: Source, damaged: list[tuple[str, str]], known: dict[str, str], processes: Processes
) -> dict[str, str]:
    """The reason, by name, of each image of a source that any process could not read; every process calls this.

    Args:
        damaged: what this process came across.
        known: what was told of before; added to.

    Raises:
        InputError: there are too many, as in pre-training.
    """
    found = dict(sorted(pair for part in processes.gather(damaged) for pair in part))
    LeftOut(source.name, len(source), known, quiet=not processes.is_main).add(found.items())
    return found


def say_left_out(unreadable: Sequence[tuple[str, str]], total: int) -> None:
    """Tell how many of so many images cannot be read, and why the first cannot, if there is any.

    Args:
        unreadable: (name, reason) of each.
    """
    if unreadable:
        name, reason = unreadable[0]
        count = f"{len(unreadable):,} of {total:,} images"
        say(f"left out {count}, which can't be read; the first is {name}: {reason}")


class LeftOut:
    """The images of a source that a judgement leaves out.

    Args:
        name: of the source.
        num_samples: images in it.
        known: the reason, by name, of each that was told of; added to.
        quiet: says nothing, where another process does.
    """

    def __init__(self, name: str, num_samples: int, known: dict[str, str], quiet: bool = False):
        self._name, self._num_samples, self._known, self._quiet = name, num_samples, known, quiet
        self._reasons: dict[str, str] = {}

    def add(self, damaged: Iterable[tuple[str, str]]) -> None:
        """Tell of those that are new.

        Args:
            damaged: (name, reason) of each.

        Raises:
            InputError: there are too many by now, as in pre-training.
        """
        for name, reason in damaged:
            self._reasons[name] = reason
            if name not in self._known and not self._quiet:
                say(f"left out {name}: {reason}")
            self._known[name] = reason
        if self._reasons:
            name, reason = next(iter(self._reasons.items()))
            first = f"the first is {name}: {reason}"
            mend = "mend or remove them, then give the same command again"
            refuse_unreadable(len(self._reasons), self._num_samples, first, mend, f"{self._name}: ")
