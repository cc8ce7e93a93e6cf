"""Some of a source's images."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from PIL import Image

from efficient_mae.data.images.decode import OpenedImage
from efficient_mae.data.sources.registry import Source


class Subset:
    """The images of a source with the given numbers, in that order; its labels are translated if need be.

    Args:
        source: of the images.
        indices: their numbers in it.
        classes: the names that labels index; None for the source's own.
        labels: what each of the source's labels becomes; None leaves them. -1 stands for none.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | np.ndarray,
        classes: tuple[str, ...] | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        self.name = source.name
        self.classes = source.classes if classes is None else classes
        self.why_unlabelled = source.why_unlabelled
        self._source, self._indices, self._labels = source, np.asarray(indices, dtype=np.int64), labels

    def __len__(self) -> int:
        return len(self._indices)

    def open(self, index: int) -> OpenedImage:
        return self._source.open(int(self._indices[index]))

    def image(self, index: int) -> Image.Image:
        return self._source.image(int(self._indices[index]))

    def label(self, index: int) -> int | None:
        label = self._source.label(int(self._indices[index]))
        if label is None or self._labels is None:
            return label
        return None if self._labels[label] < 0 else self._labels[label]

    def fingerprint(self) -> str:
        """A digest of which images these are, of which source."""
        whole = getattr(self._source, "fingerprint", str)()
        return blake2b(self._indices.tobytes() + whole.encode(), digest_size=16).hexdigest()

    def sample_name(self, index: int) -> str:
        return self._source.sample_name(int(self._indices[index]))


def spread(source: Source, most: int) -> Source:
    """The source itself, or `most` of its images, evenly spaced where it has more."""
    if len(source) <= most:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).round())
