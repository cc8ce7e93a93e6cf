"""`emae predict`: what a fine-tuned or probed classifier takes images for, as a table; or their pixels or objects.

B images, C channels, h and w height and width in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from rich.console import Console
from torch import Tensor

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import EvalTransform, Source, describe_images, normalize, open_source
from efficient_mae.engine.machine.distributed import autocast, find_device, resolve_precision
from efficient_mae.errors import InputError
from efficient_mae.interop.classifiers import Classifier, find_heads, load_classifier
from efficient_mae.tasks.detect.model import DETECT
from efficient_mae.tasks.detect.predict import ObjectsResult, predict_objects
from efficient_mae.tasks.embed import work_settings
from efficient_mae.tasks.predict_config import PredictConfig
from efficient_mae.tasks.rows import Rows, RowWork, check_out
from efficient_mae.tasks.segment.predict import LabelMapsResult, predict_label_maps
from efficient_mae.tasks.table_files import require_parquet, write_table

# Rows that are written at a time.
_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class PredictResult(Result):
    """What was written.

    Attributes:
        out: the file.
        images: their number.
        classes: names, in the order of their numbers.
        unreadable: images that were left out, each with the reason.
        images_per_second: of this call; None where all was computed before.
    """

    out: str
    images: int
    classes: list[str]
    unreadable: list[Any]
    images_per_second: float | None


def predict(config: PredictConfig) -> PredictResult | LabelMapsResult | ObjectsResult:
    """Write what the weights are trained to say of images.

    Raises:
        InputError: see :func:`predict_classes`, :func:`predict_label_maps` and :func:`predict_objects`.
    """
    heads = find_heads(config.weights)
    if heads is None:
        return predict_classes(config)
    return predict_objects(config) if heads.task == DETECT else predict_label_maps(config)


def predict_classes(config: PredictConfig) -> PredictResult:
    """Write a table of images, in the source's order: `name`, `class_1` and its `probability_1`, `class_2`, ...

    Killed and called again it goes on. Images that cannot be read are left out and named.

    Raises:
        InputError: weights that hold no classifier, no such data, an ending that isn't known, a file that is there
            already or was begun with other settings, or no image that can be read.
    """
    out = Path(config.out or "predictions.csv")
    check_out(out)
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"out={out}: must end in .csv or .parquet")
    require_parquet(out, ".csv")
    classifier = load_classifier(config.weights)
    source = open_source(config.data, config.part, config.alone())
    device = find_device(config.device)
    precision = resolve_precision(config.precision, device)
    names, top = classifier.head.classes, min(config.top, len(classifier.head.classes))
    reading = config.reading(source, classifier.in_chans, classifier.statistics.reading)
    work = RowWork(out, work_settings(config, classifier.vit, source, precision) | {"top": config.top})
    say(describe_images(source, reading, classifier.img_size).text)
    classifier.vit.to(device)

    def likeliest(images: Shaped[Tensor, "B C h w"]) -> Float[Tensor, "B 2 top"]:
        """Numbers of the classes, and their probabilities."""
        values, numbers = _probabilities(classifier, images, precision).topk(top)
        return torch.stack([numbers.float(), values], dim=1)

    rows = work.compute(
        source,
        likeliest,
        (2, top),
        EvalTransform(classifier.img_size, reading),
        min_size=classifier.patch_size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
    )
    table = work.folder / out.name
    likely = [f"{what}_{place}" for place in range(1, top + 1) for what in ("class", "probability")]
    columns = {"name": str} | {name: str if name.startswith("class") else float for name in likely}
    write_table(table, columns, _parts(rows, source, names))
    work.finish(table)
    return PredictResult(
        out=str(out),
        images=len(rows.indices),
        classes=list(names),
        unreadable=rows.unreadable,
        images_per_second=rows.images_per_second,
    )


def show_predict(result: PredictResult | LabelMapsResult | ObjectsResult, console: Console) -> None:
    """Print what :func:`predict` did."""
    rate = result.images_per_second if isinstance(result, PredictResult) else None
    speed = "" if rate is None else f", {rate:,.0f} images/s"
    found = f"{result.objects:,} objects, " if isinstance(result, ObjectsResult) else ""
    what = f"{result.images:,} images, {found}{len(result.classes)} classes{speed}"
    console.print(f"{result.out}: {what}", markup=False)


def _probabilities(classifier: Classifier, images: Shaped[Tensor, "B C h w"], precision: str) -> Float[Tensor, "B K"]:
    statistics = classifier.statistics
    with autocast(precision, images.device):
        logits = classifier.vit(normalize(images, statistics.mean, statistics.std))
    return logits.float().softmax(dim=1)


def _parts(rows: Rows, source: Source, names: tuple[str, ...]) -> Iterator[dict[str, list[Any]]]:
    for start in range(0, len(rows.indices), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        table: dict[str, list[Any]] = {"name": [source.sample_name(int(index)) for index in rows.indices[part]]}
        numbers, probabilities = rows.values[part, 0].astype(int), rows.values[part, 1]
        for place in range(numbers.shape[1]):
            table[f"class_{place + 1}"] = [names[number] for number in numbers[:, place]]
            table[f"probability_{place + 1}"] = probabilities[:, place].tolist()
        yield table
