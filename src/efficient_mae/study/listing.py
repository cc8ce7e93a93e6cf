"""What the studies would cost on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from efficient_mae.bench.step import matmul_tflops
from efficient_mae.command import Result
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.study.cells import Cell
from efficient_mae.study.costs import estimated_seconds, training_flops
from efficient_mae.study.presets import Preset
from efficient_mae.study.studies import STUDIES, Study
from efficient_mae.study.transfer import SIZED, SIZES


@dataclass(frozen=True, kw_only=True)
class ListedStudy:
    """A study, and what it would cost.

    Attributes:
        name: of the study.
        title: what it shows.
        cells: their names.
        seeds: runs of each cell.
        flops: of the runs.
        seconds: that they may take.
    """

    name: str
    title: str
    cells: list[str]
    seeds: int
    flops: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyList(Result):
    """Every study.

    Attributes:
        preset: its name.
        summary: of the preset.
        images: in the training data.
        studies: in the paper's order.
    """

    preset: str
    summary: str
    images: int
    studies: list[ListedStudy]


def seeds_of(study: Study, preset: Preset, seeds: int | None) -> int:
    """How many seeds a study's cells are run with, where so many are asked for or none."""
    if study.one_seed:
        return 1
    return preset.seeds if seeds is None else seeds


def estimate(
    study: Study, cells: Sequence[Cell], preset: Preset, *, seeds: int, images: int, jobs: int, speed: float
) -> dict[str, float]:
    """`flops` of the cells' runs, and the `seconds` that they may take.

    Args:
        images: in the training data.
        jobs: runs at a time.
        speed: of :func:`measure_speed`.
    """
    judges = preset.judges_of(study)
    flops = [training_flops(preset, cell, images, judges) for cell in cells] * seeds
    stages = 1 + len(judges)
    return {"flops": sum(flops), "seconds": round(estimated_seconds(flops, stages, speed, jobs))}


def measure_speed(device: str) -> float:
    """FLOPs a second of a large matrix product on a device, in the precision that runs take there."""
    found = find_device(device)
    return 1e12 * matmul_tflops(found, resolve_precision("auto", found))


def list_studies(preset: Preset, *, seeds: int | None, images: int | None, jobs: int, device: str) -> StudyList:
    """Every study that the preset has sizes for with its cells, and what it would cost if none of it were done yet.

    Args:
        seeds: of each cell; None takes the preset's number.
        images: in the training data; None takes what the preset is made for.
    """
    speed = measure_speed(device) * preset.gpus(device)
    listed = []
    for study in STUDIES.values():
        if study.transfers and preset.name not in SIZED:
            continue
        cells = study.cells(preset.is_paper)
        usual = SIZES[preset.name].images if study.transfers and preset.name in SIZES else preset.images
        number = seeds_of(study, preset, seeds)
        cost = estimate(study, cells, preset, seeds=number, images=images or usual, jobs=jobs, speed=speed)
        names = [cell.name for cell in cells]
        listed.append(ListedStudy(name=study.name, title=study.title, cells=names, seeds=number, **cost))
    return StudyList(preset=preset.name, summary=preset.summary, images=images or preset.images, studies=listed)


def duration(seconds: float) -> str:
    """A time in the unit that it is usually told in."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
