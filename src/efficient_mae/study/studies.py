"""The paper's tables and figures: their rows, the cells behind these, and what the paper reports for each.

The paper's figures are of ImageNet-1k, for ViT-L/16 pre-trained for 200 epochs unless a row says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from efficient_mae.study.cells import CELLS, COMPARED, METHODS, PUBLISHED_RUNS, SAME_COST, SAME_TIME, Cell
from efficient_mae.study.main_study import CONTROLS, HYPOTHESES, MAIN_REMARK, MAIN_ROWS, Hypothesis
from efficient_mae.study.transfer import FOLDERS

# The judge that decides, and those of other features than the patches' mean, which are told beside it: emae probe's
# `pool`.
PROBE = "probe"
POOLED = {"probe-token": "token", "probe-quarters": "grid2", "probe-blocks": "blocks"}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: what the paper calls it.
        cell: the run behind it; None where the paper has a figure and this package no such method.
        paper: what the paper reports, by column: `top1` and `loss`; `gflops` (multiply-accumulates, 1e9), `memory`
            (GB), `patches` (predicted an image at 14 x 14), `minutes` (an epoch on 4 A100s); `miou`, `macc`,
            `box_ap` and `mask_ap` (per cent).
    """

    label: str
    cell: Cell | None
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A table or figure.

    Attributes:
        title: what it shows.
        rows: its lines, or the runs that a figure looks at.
        small: its lines in presets other than the paper's, where they differ.
        judges: that each run has, which takes labels: commands, and probes of other features by their names in
            :data:`POOLED`; which of them a preset asks, :meth:`efficient_mae.study.presets.Preset.judges_of` says.
        one_seed: a single run of each cell is all it looks at.
        costs: what of a row is counted: `gflops`, `patches`.
        published: data and model of the paper's figures.
        remark: what must be known to read it.
        hypotheses: that it decides, said in advance.
        compared: cells that its F test is of, the others held against the first; all if none are named.
    """

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    small: tuple[Row, ...] = ()
    judges: tuple[str, ...] = (PROBE,)
    one_seed: bool = False
    costs: tuple[str, ...] = ()
    published: str = "on ImageNet-1k, with ViT-L/16 unless the row says otherwise"
    remark: str = ""
    hypotheses: tuple[Hypothesis, ...] = ()
    compared: tuple[str, ...] = ()

    @property
    def transfers(self) -> bool:
        """Its encoders are carried to other tasks."""
        return not FOLDERS.keys().isdisjoint(self.judges)

    def rows_of(self, paper: bool) -> tuple[Row, ...]:
        """Its lines in the paper's own preset or in the others."""
        return self.rows if paper or not self.small else self.small

    def cells(self, paper: bool) -> list[Cell]:
        """The cells of its rows in the paper's own preset or in the others, each once."""
        found = {row.cell.name: row.cell for row in self.rows_of(paper) if row.cell is not None}
        return [cell for cell in found.values() if cell.paper in (None, paper)]


def _row(label: str, cell: str, **paper: float) -> Row:
    return Row(label, CELLS[cell], paper)


_BASELINE = _row("MAE, mask ratio 0.85", "mae-0.85", top1=84.1, patches=167)

# Mask ratio to cost; memory at batch size 128.
TABLE_1 = {
    0.0: {"gflops": 61.6, "memory": 38.4},
    0.01: {"gflops": 66.4, "memory": 46.0},
    0.25: {"gflops": 51.4, "memory": 36.6},
    0.5: {"gflops": 36.0, "memory": 27.9},
    0.75: {"gflops": 20.8, "memory": 20.7},
}

# Table 3, in its order: runs and methods that this package doesn't have keep the paper's figures.
_METHOD_LABELS = {"mae": "MAE", "efficient-mae": "Efficient MAE"}
_SIZE_LABELS = {"base16": "ViT-B/16", "large16": "ViT-L/16", "huge14": "ViT-H/14"}
_TABLE_3 = {
    "SimMIM, Swin-B, 800 epochs": {"minutes": 10.6, "gflops": 11.3, "top1": 84.0},
    "BEiT, ViT-B/16, 800 epochs": {"minutes": 15.8, "gflops": 18.8, "top1": 83.2},
    "MaskFeat, ViT-B/16, 1600 epochs": {"minutes": 13.5, "gflops": 17.6, "top1": 84.0},
    "CAE, ViT-B/16, 800 epochs": {"minutes": 13.2, "top1": 83.6},
    "MAE, ViT-B/16, 1600 epochs": {"minutes": 7.5, "gflops": 9.8, "top1": 83.6},
    "Efficient MAE, ViT-B/16, 800 epochs": {"minutes": 6.0, "gflops": 7.6, "top1": 83.5},
    "SimMIM, Swin-L, 800 epochs": {"minutes": 19.2, "gflops": 26.0, "top1": 85.4},
    "BEiT, ViT-L/16, 800 epochs": {"minutes": 34.1, "gflops": 63.2, "top1": 85.2},
    "MaskFeat, ViT-L/16, 1600 epochs": {"gflops": 61.6, "top1": 85.7},
    "MAE, ViT-L/16, 800 epochs": {"minutes": 12.1, "gflops": 20.8, "top1": 85.4},
    "MAE, ViT-L/16, 1600 epochs": {"minutes": 12.1, "gflops": 20.8, "top1": 85.9},
    "Efficient MAE, ViT-L/16, 800 epochs": {"minutes": 8.9, "gflops": 14.1, "top1": 85.4},
    "Efficient MAE, ViT-L/16, 1600 epochs": {"minutes": 8.9, "gflops": 14.1, "top1": 85.7},
    "SimMIM, SwinV2-H, 800 epochs": {"gflops": 86.2, "top1": 85.7},
    "MAE, ViT-H/14, 1600 epochs": {"minutes": 21.1, "gflops": 48.6, "top1": 86.9},
    "Efficient MAE, ViT-H/14, 800 epochs": {"minutes": 14.9, "gflops": 31.3, "top1": 86.5},
}


def _table_3() -> tuple[Row, ...]:
    own = {
        f"{_METHOD_LABELS[method]}, {_SIZE_LABELS[size]}, {epochs} epochs": CELLS[f"{method}-{size}-{epochs}"]
        for method in METHODS
        for size, epochs in PUBLISHED_RUNS[method]
    }
    return tuple(Row(label, own.get(label), paper) for label, paper in _TABLE_3.items())


_METHODS = tuple(
    Row(f"{label}{budget}", CELLS[f"{name}{ending}"])
    for budget, ending in (("", ""), (", same time", SAME_TIME))
    for name, label in COMPARED.items()
)

_TABLE_3_REMARK = (
    "Presets other than `paper` hold all methods of this package against each other, with encoders of the same "
    "depth, width and patches: for as many epochs, and for as much time as MAE takes, to a tenth. The minutes "
    "of an epoch, and the memory of the process, were measured beforehand, one method after another "
    "(`speeds.json`). The training of the tokenizer whose words BEiT and CAE learn is in neither. The untrained "
    "encoder at the bottom is MAE's, those of other methods have their names. Where the preset has a rate for a "
    "method, it is trained at that. Rows without figures weren't run. Judges but ridge regression, logistic "
    "regression and centred k-NN see one subset of labels."
)

# Columns DF and DM of rows 3 and 4 stand swapped in the paper: 14.2 GFLOPs can only be the row with decoder masking,
# and Table 8 has 84.3 for beta = 26 without the loss and 84.5 for the loss without beta.
_TABLE_4 = (
    _row("MAE, 0.75", "mae-0.75", gflops=20.8, memory=38.4, top1=84.6),
    _row("MAE, 0.85", "mae-0.85", gflops=14.6, memory=32.8, top1=84.1),
    _row("decoder masking, 0.85", "beta-26-without-loss", gflops=14.2, memory=28.2, top1=84.3),
    _row("loss, 0.85", "beta-none", gflops=14.6, memory=32.8, top1=84.5),
    _row("Efficient MAE, 0.85", "efficient-mae-0.85", gflops=14.2, memory=28.2, top1=84.6),
    _row("MAE, 0.90", "mae-0.90", gflops=11.6, memory=26.9, top1=83.7),
    _row("Efficient MAE, 0.90", "efficient-mae-0.90", gflops=10.3, memory=22.3, top1=84.3),
    _row("MAE, 0.95", "mae-0.95", gflops=8.5, memory=24.6, top1=81.6),
    _row("Efficient MAE, 0.95", "efficient-mae-0.95", gflops=5.9, memory=15.6, top1=82.9),
)
_TABLE_5 = (
    _BASELINE,
    _row("(a) visible patches in 3 x 3", "metric-visible_neighbours", top1=84.3, patches=114),
    _row("(b) inverse distances in 5 x 5", "metric-inverse_distance_sum", top1=84.5, patches=159),
    _row("(c) nearest patch", "metric-nearest_patch", top1=84.4, patches=167),
    _row("P²Dist", "efficient-mae-0.85", top1=84.6, patches=150),
)
_TABLE_6 = (
    _BASELINE,
    _row("(a) thresholding", "beta-26-without-loss", top1=84.3),
    _row("(b) scheduling", "schedule-curriculum", top1=84.4),
    _row("(c) normalisation", "schedule-normalise", top1=84.3),
    _row("Difficulty-Flatten Loss", "efficient-mae-0.85", top1=84.6),
)
_TABLE_7 = (
    _row("gamma 0", "beta-26-without-loss", top1=84.3),
    _row("gamma 0.4", "gamma-0.4", top1=84.5),
    _row("gamma 0.6", "efficient-mae-0.85", top1=84.6),
    _row("gamma 0.8", "gamma-0.8", top1=84.6),
    _row("gamma 1", "gamma-1", top1=84.5),
    _row("gamma 2", "gamma-2", top1=84.3),
)
_TABLE_8 = (
    _row("beta 9, without the loss", "beta-9-without-loss", top1=84.2, patches=82),
    _row("beta 13, without the loss", "beta-13-without-loss", top1=84.3, patches=114),
    _row("beta 26, without the loss", "beta-26-without-loss", top1=84.3, patches=150),
    _row("no beta, without the loss", "mae-0.85", top1=84.1, patches=167),
    _row("beta 9, with the loss", "beta-9", top1=84.2, patches=82),
    _row("beta 13, with the loss", "beta-13", top1=84.3, patches=114),
    _row("beta 26, with the loss", "efficient-mae-0.85", top1=84.6, patches=150),
    _row("no beta, with the loss", "beta-none", top1=84.5, patches=167),
)
_TABLE_9 = tuple(
    _row(f"decoder depth {depth}", f"decoder-{depth}", top1=top1) for depth, top1 in ((8, 84.6), (4, 84.3), (1, 84.2))
)
# Of ViT-B. The paper doesn't say how long it was pre-trained: as in Table 3.
_TABLE_10_MAE = {"miou": 48.1, "macc": 58.8, "box_ap": 50.1, "mask_ap": 44.7}
_TABLE_10_OURS = {"miou": 48.0, "macc": 58.7, "box_ap": 50.0, "mask_ap": 44.5}
_TABLE_10 = (
    _row("from scratch", "scratch-base16"),
    _row("MAE, 1600 epochs", "mae-base16-1600", **_TABLE_10_MAE),
    _row("Efficient MAE, 800 epochs", "efficient-mae-base16-800", **_TABLE_10_OURS),
)
_TRANSFERRED = (
    _row("from scratch", "transfer-scratch"),
    _row("MAE, 0.75", "transfer-mae", **_TABLE_10_MAE),
    _row("Efficient MAE, 0.85", "transfer-efficient-mae", **_TABLE_10_OURS),
)
_EQUAL_COST = (
    _row("MAE, 0.75", "mae-0.75"),
    *(
        _row(f"{label}{budget}", f"{name}{ending}")
        for name, label in (
            ("mae-0.85", "MAE, 0.85"),
            ("efficient-mae-0.85", "Efficient MAE, 0.85"),
            ("cross-0.85", "cross decoder, 0.85"),
        )
        for budget, ending in (("", ""), (", same multiplications", SAME_COST), (", same time", SAME_TIME))
    ),
)
_FIGURE_1 = (
    *(
        _row(f"MAE, {ratio:.2f}", f"mae-{ratio:.2f}", gflops=gflops, top1=top1)
        for ratio, gflops, top1 in ((0.75, 20.8, 84.6), (0.85, 14.6, 84.1), (0.9, 11.6, 83.7), (0.95, 8.5, 81.6))
    ),
    _row("Efficient MAE, 0.75", "efficient-mae-0.75"),
    *(
        _row(f"Efficient MAE, {ratio:.2f}", f"efficient-mae-{ratio:.2f}", gflops=gflops, top1=top1)
        for ratio, gflops, top1 in ((0.85, 14.2, 84.6), (0.9, 10.3, 84.3), (0.95, 5.9, 82.9))
    ),
)
_MAE_BY_RATIO = tuple(
    _row(f"MAE, {ratio:.2f}", f"mae-{ratio:.2f}", loss=loss, top1=top1)
    for ratio, loss, top1 in ((0.75, 0.407, 84.6), (0.85, 0.486, 84.1), (0.9, 0.549, 83.7))
)
_LOSSES_BY_RATIO = tuple(Row(row.label, row.cell, {"loss": row.paper["loss"]}) for row in _MAE_BY_RATIO)
_TABLE_10_REMARK = (
    "The same model, with the same seed of all that isn't pre-trained, learns to segment and to detect from random "
    "weights and from encoders that have seen the training images without labels. Intervals are over seeds: labels "
    "and held-out images are the same for each."
)

STUDIES = {
    study.name: study
    for study in (
        Study("table1", "Cost of MAE against mask ratio (ViT-L/16)", judges=()),
        Study("table2", "Accuracy and loss of MAE against mask ratio", _MAE_BY_RATIO),
        Study(
            "table3",
            "Methods of masked image modelling",
            _table_3(),
            _METHODS,
            judges=(PROBE, "finetune", "linear-probe", "knn"),
            costs=("gflops",),
            remark=_TABLE_3_REMARK,
        ),
        Study(
            "table4",
            "The Difficulty-Flatten Loss and decoder masking, by mask ratio",
            _TABLE_4,
            costs=("gflops", "patches"),
            remark="The paper's columns DF and DM of rows 3 and 4 stand swapped; they are put right here.",
        ),
        Study("table5", "Metrics of difficulty", _TABLE_5, costs=("patches",)),
        Study(
            "table6",
            "Schedulers of difficulty",
            _TABLE_6,
            costs=("patches",),
            remark="The curriculum goes from the easiest quarter of the masked patches, and what is as easy, to all: "
            "at 14 x 14 from 31.7 %.",
        ),
        Study("table7", "Gamma, the exponent of the loss", _TABLE_7),
        Study(
            "table8",
            "Beta, the threshold of decoder masking, with and without the loss",
            _TABLE_8,
            costs=("patches",),
        ),
        Study("table9", "Depth of the decoder", _TABLE_9, costs=("gflops",)),
        Study(
            "table10",
            "Transfer to segmentation and detection",
            _TABLE_10,
            _TRANSFERRED,
            judges=tuple(FOLDERS),
            published="on ADE20K and COCO, with ViT-B/16, which it doesn't train from scratch there",
            remark=_TABLE_10_REMARK,
        ),
        Study("fig1", "Accuracy and cost against mask ratio", _FIGURE_1, costs=("gflops",)),
        Study("fig2", "Count and loss of masked patches against P²Dist", _LOSSES_BY_RATIO, judges=()),
        Study(
            "fig3",
            "Loss of each patch of real images, MAE at 0.90",
            (_row("MAE, 0.90", "mae-0.90"),),
            judges=(),
            one_seed=True,
        ),
        Study("fig4", "Masked patches by P²Dist", judges=()),
        Study(
            "cost",
            "What Efficient MAE learns for what MAE costs",
            _EQUAL_COST,
            costs=("gflops",),
            remark="For as many multiplications, and for as much time, as MAE takes, to a tenth. The minutes of "
            "an epoch were measured beforehand, one method after another (`speeds.json`).",
        ),
        Study(
            "main",
            "Does Efficient MAE learn as well, and does difficulty matter",
            tuple(_row(label, cell, **paper) for label, cell, paper in MAIN_ROWS),
            judges=(PROBE, *POOLED),
            remark=MAIN_REMARK,
            hypotheses=HYPOTHESES,
            compared=CONTROLS,
        ),
    )
}
