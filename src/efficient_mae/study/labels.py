"""A small labelled data set out of a larger one, for fine-tuning on few labels."""

from pathlib import Path

from efficient_mae.data import LabelledData, Source, UnreadableImage, spread
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.tasks.left_out import LeftOut


def write_few_labels(data: LabelledData, labels: int, folder: Path) -> None:
    """Write `labels` training images, spread over all, and every held-out one, as a folder per class.

    Unreadable images are left out, and named. Does nothing where all is done already.

    Raises:
        InputError: too many of either part can't be read.
    """
    done = folder / ".complete"
    if done.exists():
        return
    _write(spread(data.train, labels), folder / "train")
    _write(data.test, folder / "val")
    replace_file(done, f"{labels}\n".encode())


def _write(source: Source, folder: Path) -> None:
    left_out = LeftOut(source.name, len(source), {})
    for index in range(len(source)):
        path = folder / f"class-{source.label(index):04}" / f"{index:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.image(index).save(path)
        except UnreadableImage as error:
            left_out.add([(error.name, error.reason)])
