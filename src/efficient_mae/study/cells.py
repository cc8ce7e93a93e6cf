"""The cells that tables are made of: one pre-training each, by the settings in which it differs from the preset.

A name stands for one set of settings everywhere, so tables share the runs of the cells that they have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# The paper's ablations: ViT-L/16, 200 epochs (Sec. 5.1).
ABLATION_RECIPE = "pretrain_large16_200"


@dataclass(frozen=True)
class Cell:
    """A pre-training that a table or figure asks for.

    Attributes:
        name: of its directory, and what `--only` takes.
        settings: of `emae pretrain`, on top of the preset's.
        method: of its model, whose size is the preset's.
        recipe: what the paper's preset starts from.
        paper: run by the paper's preset alone (True), by the others alone (False), or by all.
        made: of its settings, those that name a run of another command with the same seed: the command.
        compared: with other methods, at the rate that the preset has for its method then.
        as_long_as: the cell that it lasts as long as; None lasts its epochs.
        measure: of how long that is: time measured on this machine, or multiplications.
        transferred: to other tasks, at the sizes that the preset has for that.
        pretrained: False has no pre-training: what judges it trains the same model from scratch.
    """

    name: str
    settings: Mapping[str, Any]
    method: str = "mae"
    recipe: str = ABLATION_RECIPE
    paper: bool | None = None
    made: Mapping[str, str] = field(default_factory=dict)
    compared: bool = False
    as_long_as: str | None = None
    measure: Literal["time", "gmacs"] = "time"
    transferred: bool = False
    pretrained: bool = True


def _cells() -> list[Cell]:
    def objective(mask_ratio: float, gamma: float, beta: float | None, **others: Any) -> dict[str, Any]:
        return {"mask_ratio": mask_ratio, "gamma": gamma, "beta": beta, **others}

    found = []
    for ratio in (0.75, 0.85, 0.9, 0.95):
        found.append(Cell(f"mae-{ratio:.2f}", objective(ratio, 0.0, None)))
        found.append(Cell(f"efficient-mae-{ratio:.2f}", objective(ratio, 0.6, 26.0)))
    for beta in (9.0, 13.0, 26.0):
        found.append(Cell(f"beta-{beta:g}-without-loss", objective(0.85, 0.0, beta)))
    for beta in (9.0, 13.0, None):
        name = "none" if beta is None else f"{beta:g}"
        found.append(Cell(f"beta-{name}", objective(0.85, 0.6, beta)))
    for gamma in (0.4, 0.8, 1.0, 2.0):
        found.append(Cell(f"gamma-{gamma:g}", objective(0.85, gamma, 26.0)))
    for metric in ("visible_neighbours", "inverse_distance_sum", "nearest_patch"):
        found.append(Cell(f"metric-{metric}", objective(0.85, 0.6, None, difficulty=metric)))
    for schedule in ("curriculum", "normalise"):
        found.append(Cell(f"schedule-{schedule}", objective(0.85, 0.0, None, schedule=schedule)))
    for depth in (8, 4, 1):
        found.append(Cell(f"decoder-{depth}", objective(0.85, 0.6, 26.0, decoder_depth=depth)))
    # Of Efficient MAE at 0.95: its halves, and what is left of it where chance has a say.
    found.append(Cell("loss-alone-0.95", objective(0.95, 0.6, None)))
    found.append(Cell("beta-alone-0.95", objective(0.95, 0.0, 26.0)))
    found.append(Cell("random-targets-0.95", objective(0.95, 0.6, 26.0, shuffle="targets")))
    found.append(Cell("shuffled-difficulties-0.95", objective(0.95, 0.6, 26.0, shuffle="difficulties")))
    for method, settings in METHODS.items():
        for size, epochs in PUBLISHED_RUNS[method]:
            recipe = f"{RECIPES[method]}_{size}_{epochs}"
            found.append(Cell(f"{method}-{size}-{epochs}", settings, recipe=recipe, paper=True))
    compared = [replace(cell, paper=False, compared=True) for cell in _COMPARED]
    timed = [replace(cell, name=f"{cell.name}{SAME_TIME}", as_long_as=BUDGET) for cell in compared]
    transferred = [replace(cell, paper=False, transferred=True) for cell in _TRANSFERRED]
    # What Efficient MAE learns for what MAE costs, and what MAE does at its mask ratio.
    cross, equal = Cell("cross-0.85", _CROSS), list[Cell]()
    for cell in (*(one for one in found if one.name in ("mae-0.85", "efficient-mae-0.85")), cross):
        longer = replace(cell, as_long_as="mae-0.75")
        equal.append(replace(longer, name=f"{cell.name}{SAME_COST}", measure="gmacs"))
        equal.append(replace(longer, name=f"{cell.name}{SAME_TIME}"))
    return [*found, *compared, *equal, *timed, *transferred, _SCRATCH, cross]


# Table 3 in the paper's own preset: settings of `emae pretrain`, and which of their runs the paper lists (size and
# epochs).
METHODS: dict[str, dict[str, Any]] = {
    "mae": {"mask_ratio": 0.75, "gamma": 0.0, "beta": None},
    "efficient-mae": {"mask_ratio": 0.85, "gamma": 0.6, "beta": 26.0},
}
RECIPES = {"mae": "mae_pretrain", "efficient-mae": "pretrain"}
PUBLISHED_RUNS = {
    "mae": (("base16", 1600), ("large16", 800), ("large16", 1600), ("huge14", 1600)),
    "efficient-mae": (("base16", 800), ("large16", 800), ("large16", 1600), ("huge14", 800)),
}

# Table 3 elsewhere: every method of this package, its decoders and targets, with the preset's encoder. A method is
# added here, and to the names below, and shows up in the table.
_TOKENS = {"tokenizer": "tokenizer"}
_CROSS = METHODS["efficient-mae"] | {"decoder": "cross"}
_HALF = METHODS["efficient-mae"] | {"beta": None, "prediction_ratio": 0.5}
_COMPARED = (
    Cell("mae", METHODS["mae"]),
    Cell("efficient-mae", METHODS["efficient-mae"]),
    Cell("cross", _CROSS),
    *(Cell(f"{targets}-targets", _HALF | {"targets": targets}) for targets in ("random", "farthest")),
    Cell("simmim", {}, method="simmim"),
    Cell("maskfeat", {}, method="maskfeat"),
    Cell("beit", {}, method="beit", made=_TOKENS),
    Cell("cae", {}, method="cae", made=_TOKENS),
)
COMPARED = {
    "mae": "MAE, 0.75",
    "efficient-mae": "Efficient MAE, 0.85",
    "cross": "Efficient MAE, 0.85, cross decoder",
    "random-targets": "its loss, 0.85, half of the targets at random",
    "farthest-targets": "its loss, 0.85, half of the targets, farthest",
    "simmim": "SimMIM (ViT)",
    "maskfeat": "MaskFeat",
    "beit": "BEiT",
    "cae": "CAE",
}
# The cell that the others last as long as, and what names of cells that last as long as another end with.
BUDGET, SAME_TIME, SAME_COST = "mae", "-same-time", "-same-cost"

# Table 10: the paper's own preset takes Table 3's pre-trainings of ViT-B; the others have these.
_SCRATCH = Cell("scratch-base16", {}, recipe="mae_pretrain_base16_1600", paper=True, pretrained=False)
_TRANSFERRED = (
    Cell("transfer-scratch", {}, pretrained=False),
    Cell("transfer-mae", METHODS["mae"]),
    Cell("transfer-efficient-mae", METHODS["efficient-mae"]),
)

CELLS = {cell.name: cell for cell in _cells()}
