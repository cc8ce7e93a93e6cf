"""A small labelled data set out of a larger one, for fine-tuning on few labels."""

from contextlib import suppress
from pathlib import Path

from efficient_mae.data import LabelledData, Source, UnreadableImage, spread
from efficient_mae.engine.storage.durable import replace_file


def write_few_labels(data: LabelledData, labels: int, folder: Path) -> None:
    """Write `labels` training images, spread over all, and every held-out one, as a folder per class.

    Unreadable images are left out. Does nothing where all is done already.
    """
    done = folder / ".complete"
    if done.exists():
        return
    _write(spread(data.train, labels), folder / "train")
    _write(data.test, folder / "val")
    replace_file(done, f"{labels}\n".encode())


def _write(source: Source, folder: Path) -> None:
    for index in range(len(source)):
        path = folder / f"class-{source.label(index):04}" / f"{index:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(UnreadableImage):
            source.image(index).save(path)
