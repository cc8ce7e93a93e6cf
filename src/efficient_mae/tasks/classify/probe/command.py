"""`emae probe`: encoders judged by what simple classifiers learn from their features, and compared in pairs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from glob import glob, has_magic
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool

from efficient_mae.backbones import Backbone
from efficient_mae.console import say
from efficient_mae.data import DataChoice, LabelledData, describe_images, open_labelled
from efficient_mae.data.sources.labelled import labels_of
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, find_run_settings, load, load_statistics
from efficient_mae.interop.classifiers import hollow
from efficient_mae.methods import backbone_of
from efficient_mae.ranges import Location, NonNegativeInt, PositiveInt, Seed
from efficient_mae.tasks.classify.probe.images import (
    Features,
    check_same_images,
    draw_subsets,
    pixel_features,
    pixel_name,
    read_features,
)
from efficient_mae.tasks.classify.probe.judges import JUDGES, Lesson
from efficient_mae.tasks.classify.probe.record import Record, check_file
from efficient_mae.tasks.classify.probe.result import Judged, Judgement, Pair, ProbeResult
from efficient_mae.tasks.classify.probe.statistics import Bootstrap, holm, mcnemar
from efficient_mae.tasks.features import embed, labelled_batches, untrained


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(DataChoice, ReadingSettings):
    """Settings of `emae probe`."""

    weights: tuple[Location, ...] | Location
    """encoder, or several as [A,B]: run directory, checkpoint, export, timm:NAME, folder of timm's or transformers',
    .safetensors or .pth; a pattern such as runs/a-* names the seeds of one encoder"""
    data: Location | None = None
    """labelled images with a held-out part (null: the first run's own data)"""
    labels: PositiveInt | None = 1000
    """training images of each label subset, stratified (null: all of them, once)"""
    subsets: PositiveInt = 10
    """label subsets, the same for every encoder"""
    pool: Literal["avg", "token", "grid2", "blocks"] = "avg"
    """feature of an image: avg, the mean of its patches' tokens; token, its class token; grid2, the means of its four
    quarters; blocks, the means after each of the last four blocks"""
    judges: tuple[Literal["ridge", "logistic", "knn"], ...] = ("ridge", "logistic", "knn")
    """of standardised features ridge and logistic regression, of centred ones k nearest neighbours"""
    folds: PositiveInt = 5
    """of the cross-validation by which logistic regression chooses its penalty's strength; ridge leaves out one"""
    k: PositiveInt = 20
    """neighbours that vote"""
    baselines: bool = False
    """judge raw pixels too, and each encoder untrained"""
    out: Location | None = None
    """file for which held-out images were classified rightly, .safetensors"""
    seed: Seed = 0
    """of the label subsets and folds"""
    untrained_seed: Seed = 0
    """of the untrained encoders' weights"""
    batch_size: PositiveInt = 256
    """images encoded at a time"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    num_workers: NonNegativeInt = 1
    """processes that read images"""


@dataclass(frozen=True)
class _Encoder:
    """What a feature is made by; `model` None stands for raw pixels of images as `like` takes them."""

    name: str
    model: Backbone | None
    like: Backbone
    statistics: ImageStatistics


def probe(config: ProbeConfig) -> ProbeResult:
    """Judge encoders by the classifiers that ridge and logistic regression and nearest neighbours make of few labels.

    Every encoder has the same label subsets and the same held-out images, of which none has a part in any choice. The
    same call gives the same figures.

    Raises:
        InputError: no such weights or data, data that :func:`efficient_mae.data.open_labelled` refuses, label subsets
            that can't be drawn, more folds or neighbours than a subset has images, other images that can be read by
            one encoder than by another, different numbers of seeds, or an `out` that isn't a place for answers.
    """
    if config.out is not None:
        check_file(config.out)
    given = (config.weights,) if isinstance(config.weights, str) else tuple(config.weights)
    groups = {name: _seeds_of(name) for name in given}
    if len({len(files) for files in groups.values()}) > 1:
        counts = ", ".join(f"{name}: {len(files)}" for name, files in groups.items())
        raise InputError(f"weights: each encoder needs as many seeds as the others ({counts})")
    settings = find_run_settings(next(iter(groups.values()))[0]) if config.data is None else {}
    spec = config.data or settings.get("data")
    if spec is None:
        raise InputError(f"{given[0]}: isn't a run directory, so its data is unknown; give --data")
    data = open_labelled(spec, choice=config.alone(settings))
    subsets = draw_subsets(data, config.labels, config.subsets, config.seed)
    _check(config, data, subsets)
    damaged: dict[str, str] = {}
    rows: dict[str, list[Features]] = {}
    wanted = np.unique(np.concatenate(subsets))
    for encoder in _encoders(groups, config):
        found = _features(encoder, config, data, wanted, damaged)
        if rows:
            check_same_images(next(iter(rows.values()))[0], found)
        rows.setdefault(encoder.name, []).append(found)
    answers = {name: _judge(of_seeds, subsets, data, config) for name, of_seeds in rows.items()}
    right = {name: {judge: one.right for judge, one in found.items()} for name, found in answers.items()}
    drawn = Bootstrap.of_each(
        {judge: {name: found[judge] for name, found in right.items()} for judge in dict.fromkeys(config.judges)}
    )
    first = next(iter(rows.values()))[0]
    if config.out is not None:
        Record.of(data, subsets, first.test_images, right).write(config.out)
    return ProbeResult(
        data=spec,
        pool=config.pool,
        labels=len(subsets[0]),
        subsets=len(subsets),
        test_images=len(first.test_images),
        damaged=dict(sorted(damaged.items())),
        encoders=[_judged(name, of_seeds, answers[name], drawn) for name, of_seeds in rows.items()],
        pairs=[pair for judge, one in drawn.items() for pair in _pairs(judge, one, right)],
        out=config.out,
    )


def _seeds_of(pattern: str) -> list[str]:
    found = sorted(glob(pattern)) if has_magic(pattern) else [pattern]  # noqa: PTH207 - it may be absolute
    if not found:
        raise InputError(f"weights={pattern}: nothing matches this pattern")
    return found


def _check(config: ProbeConfig, data: LabelledData, subsets: list[np.ndarray]) -> None:
    """Raise InputError for what can't be learnt from label subsets of this size."""
    size, labels = len(subsets[0]), labels_of(data.train)
    if config.k > size and "knn" in config.judges:
        raise InputError(f"k={config.k}: must lie between 1 and the {size} labelled images of a subset")
    if "logistic" in config.judges:
        # Of a class of one image none is left while that one is asked.
        if any((np.bincount(labels[subset]) > 1).sum() < 2 for subset in subsets):
            raise InputError(f"labels={size}: a subset of so few has no two classes of two images; give more")
        most = min(int(np.bincount(labels[subset]).max()) for subset in subsets)
        if not 2 <= config.folds <= most:
            raise InputError(
                f"folds={config.folds}: must lie between 2 and the {most} images of the largest class of a subset, "
                f"which has {size}"
            )
    if any(len(np.unique(labels[subset])) < 2 for subset in subsets):
        raise InputError(f"labels={size}: a subset of so few has images of one class alone; give more")


def _encoders(groups: dict[str, list[str]], config: ProbeConfig) -> Iterator[_Encoder]:
    """Every encoder with each of its seeds, and what stands beside them; one at a time is held."""
    pixels: dict[str, _Encoder] = {}
    shapes: dict[str, _Encoder] = {}
    for name, files in groups.items():
        for file in files:
            model, statistics = backbone_of(load(file)).float(), load_statistics(file)
            if config.pool == "token":
                model.check_pool(config.pool)
            one = _Encoder(name, None, hollow(model), statistics)
            yield replace(one, model=model)
            shapes.setdefault(f"{type(model).__name__} {sorted(model.arguments.items())}", one)
            pixels.setdefault(pixel_name(model), one)
    if not config.baselines:
        return
    seeds = range(len(next(iter(groups.values()))))
    for one in shapes.values():
        name = "untrained" if len(shapes) == 1 else f"untrained, like {one.name}"
        for seed in seeds:
            yield replace(one, name=name, model=untrained(one.like, config.untrained_seed + seed))
    for name, one in pixels.items():
        for _ in seeds:
            yield replace(one, name=name)


def _features(
    encoder: _Encoder, config: ProbeConfig, data: LabelledData, wanted: np.ndarray, damaged: dict[str, str]
) -> Features:
    device = find_device(config.device)
    reading = config.reading(data.train, encoder.like.in_chans, encoder.statistics.reading)
    say(f"{encoder.name}: {describe_images(data.train, reading, encoder.like.img_size).text}")
    make = pixel_features(encoder.statistics)
    if encoder.model is not None:
        how = {"precision": resolve_precision(config.precision, device), "pool": config.pool}
        make = partial(embed, encoder.model.to(device).eval(), statistics=encoder.statistics, **how)
    read = partial(
        labelled_batches,
        encoder=encoder.like,
        reading=reading,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
        damaged=damaged,
    )
    return read_features(encoder.name, data, wanted, make, read)


@dataclass(frozen=True)
class _Answers:
    """A judge's, of a row: whether each was right, and the strengths of the penalties, by seed."""

    right: Bool[np.ndarray, "S L N"]
    strengths: list[list[float]]


def _judge(
    of_seeds: list[Features], subsets: list[np.ndarray], data: LabelledData, config: ProbeConfig
) -> dict[str, _Answers]:
    """Single answers of a row (seeds, label subsets, held-out images), by judge."""
    labels, asked = labels_of(data.train), labels_of(data.test)
    truth = asked[of_seeds[0].test_images]
    found = {}
    for judge in dict.fromkeys(config.judges):
        answers = [
            [JUDGES[judge](_lesson(features, subset, labels, len(data.classes), config)) for subset in subsets]
            for features in of_seeds
        ]
        strengths = [[one.strength for one in row if one.strength is not None] for row in answers]
        found[judge] = _Answers(np.array([[one.classes == truth for one in row] for row in answers]), strengths)
    return found


def _judged(name: str, of_seeds: list[Features], answers: dict[str, _Answers], drawn: dict[str, Bootstrap]) -> Judged:
    judgements = {
        judge: Judgement(
            accuracy=drawn[judge].accuracy(name),
            accuracies=one.right.mean(axis=2).tolist(),
            strengths=one.strengths if one.strengths[0] else None,
        )
        for judge, one in answers.items()
    }
    return Judged(encoder=name, seeds=len(of_seeds), width=of_seeds[0].train.shape[1], judgements=judgements)


def _lesson(features: Features, subset: np.ndarray, labels: np.ndarray, classes: int, config: ProbeConfig) -> Lesson:
    readable = np.isin(features.train_images, subset)
    numbers = features.train_images[readable]
    return Lesson(
        features.train[readable], labels[numbers], features.test, classes, config.folds, config.seed % 2**32, config.k
    )


def _pairs(judge: str, drawn: Bootstrap, right: dict[str, dict[str, np.ndarray]]) -> list[Pair]:
    found = [(first, second, drawn.difference(first, second)) for first, second in combinations(right, 2)]
    corrected = holm([difference.p for *_, difference in found])
    return [
        Pair(
            judge=judge,
            first=first,
            second=second,
            difference=difference,
            p_holm=p,
            mcnemar=_mcnemar(right[first][judge], right[second][judge]),
        )
        for (first, second, difference), p in zip(found, corrected, strict=True)
    ]


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) > 1:
        return None
    return mcnemar(first[0].mean(axis=0) > 0.5, second[0].mean(axis=0) > 0.5)
