"""Photographs that ship with the package, unlabelled: what is asked of images and not of classes is asked of these.

Each is cut in a training and a held-out part, which share no pixel. They are under CC0, CC BY or CC BY-SA
(sample/photographs/NOTICE).
"""

from pathlib import Path

from efficient_mae.data.sources.folder import FolderSource

PHOTOGRAPHS = Path(__file__).parents[1] / "sample" / "photographs"


def open_photographs(part: str) -> FolderSource:
    """One part of each photograph, of 384 pixels in height or in width at most."""
    return FolderSource(PHOTOGRAPHS / part, "photographs-sample")
