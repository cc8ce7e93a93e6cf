"""How cells are judged by `emae probe`: of the mean of the patches' features, and of others beside it."""

from pathlib import Path
from typing import Any

from efficient_mae.errors import InputError
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.presets import Preset
from efficient_mae.study.studies import POOLED, PROBE, STUDIES
from efficient_mae.tasks.classify.probe.command import ProbeConfig

# In the folder of a cell's seed.
ANSWERS = "probe.safetensors"


def is_probe(judge: str) -> bool:
    """Whether a judge is `emae probe`, of one feature or another."""
    return judge == PROBE or judge in POOLED


def subcommand_of(judge: str) -> str:
    """The subcommand of `emae` that a judge, or anything else that is run, is."""
    return PROBE if is_probe(judge) else judge


def has_baselines(cell: Cell, preset: Preset) -> bool:
    """Whether what a table's rows are held against is judged beside this cell: the first of any table is such."""
    first = {
        cells[0].name
        for study in STUDIES.values()
        if PROBE in study.judges_of(preset.is_paper) and (cells := study.cells(preset.is_paper))
    }
    return preset.directory(cell) in {preset.directory(CELLS[name]) for name in first}


def check_labels(data: str, images: int, preset: Preset) -> None:
    """Raise InputError for data with too few labelled images to draw subsets of, before anything is trained."""
    labels = preset.others.get(PROBE, {}).get("labels", ProbeConfig.labels)
    if images <= labels:
        raise InputError(
            f"data={data}: has {images:,} labelled training images, and with preset {preset.name} encoders "
            f"are judged on subsets of {labels:,}; give more"
        )


def probe_settings(judge: str, cell: Cell, preset: Preset, seed: int, folder: Path) -> dict[str, Any]:
    """Settings of a probe, but for data and weights. Label subsets are the same for every cell and seed.

    Args:
        folder: of the cell's seed.
    """
    settings = preset.settings(PROBE, cell) | {"seed": 0, "untrained_seed": seed}
    settings["baselines"] = has_baselines(cell, preset)
    if judge == PROBE:
        return settings | {"out": folder / ANSWERS}
    return settings | {"judges": ["ridge"], "pool": POOLED[judge]}
