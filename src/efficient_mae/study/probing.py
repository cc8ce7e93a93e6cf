"""How cells are judged by `emae probe`: of the mean of the patches' features, and of others beside it."""

from pathlib import Path
from typing import Any

from efficient_mae.data import LabelledData
from efficient_mae.errors import InputError
from efficient_mae.study.cells import BUDGET, CELLS, Cell
from efficient_mae.study.presets import Preset
from efficient_mae.study.studies import POOLED, PROBE, STUDIES
from efficient_mae.tasks.classify.probe.command import ProbeConfig
from efficient_mae.tasks.classify.probe.images import draw_subsets

# In the folder of a cell's seed.
ANSWERS = "probe.safetensors"


def is_probe(judge: str) -> bool:
    """Whether a judge is `emae probe`, of one feature or another."""
    return judge == PROBE or judge in POOLED


def subcommand_of(judge: str) -> str:
    """The subcommand of `emae` that a judge, or anything else that is run, is."""
    return PROBE if is_probe(judge) else judge


def has_baselines(cell: Cell, preset: Preset) -> bool:
    """Whether what a table's rows are held against is judged beside this cell.

    The first of any table is such, and where methods are compared those whose encoder begins as another than MAE's.
    """
    first = {
        cells[0].name
        for study in STUDIES.values()
        if PROBE in preset.judges_of(study) and (cells := study.cells(preset.is_paper))
    }
    begins_otherwise = cell.compared and cell.method != CELLS[BUDGET].method
    return begins_otherwise or preset.directory(cell) in {preset.directory(CELLS[name]) for name in first}


def check_labels(spec: str, data: LabelledData, preset: Preset) -> None:
    """Raise InputError for data of which no label subsets can be drawn, before anything is trained."""
    labels = preset.others[PROBE].get("labels", ProbeConfig.labels)
    try:
        draw_subsets(data, labels, number=1, seed=0)
    except InputError as error:
        raise InputError(
            f"data={spec}: with preset {preset.name} encoders are judged on subsets of {labels:,} labelled training "
            f"images, and there are {len(data.train):,} ({str(error).partition(';')[0]})"
        ) from None


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
