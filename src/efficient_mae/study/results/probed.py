"""What `emae probe` said of cells: its single answers, compared over seeds, label subsets and held-out images.

Letters: L label subsets, N held-out images.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from efficient_mae.study.cells import COMPARED, Cell
from efficient_mae.study.presets import Preset
from efficient_mae.study.probing import ANSWERS
from efficient_mae.study.speeds import settle_length
from efficient_mae.study.studies import PROBE, Study
from efficient_mae.tasks.classify.probe.record import check_same_images, read_record
from efficient_mae.tasks.classify.probe.statistics import Bootstrap, Difference, Estimate

# What tables hold their rows against, in the order in which a probe judges it behind the encoder. That of a method
# whose encoder begins as another than the first row's goes by its name.
BASELINES = ("untrained encoder", "raw pixels")
# Whose answers are compared, and decide.
_JUDGE = "ridge"

# By seed, whether each answer was right.
Answers = Mapping[int, Bool[np.ndarray, "L N"]]


class Comparison:
    """Answers of cells and of what they are held against; every draw of seeds, subsets and images is for all rows.

    Attributes:
        answers: by the cell's name, or by that of :func:`baselines_of` one.
    """

    def __init__(self, answers: Mapping[str, Answers]) -> None:
        self.answers = answers
        self._drawn: dict[tuple[int, ...], Bootstrap] = {}

    def seeds(self, *names: str) -> tuple[int, ...]:
        """Those with which all of these have been judged."""
        return tuple(sorted(set.intersection(*(set(self.answers.get(name, {})) for name in names))))

    def distinct(self, names: Sequence[str]) -> list[str]:
        """Those of these rows that have been judged, but for one whose runs are those of an earlier one."""
        found: dict[frozenset[int], str] = {}
        for name in names:
            if name in self.answers:
                found.setdefault(frozenset(map(id, self.answers[name].values())), name)
        return list(found.values())

    def accuracy(self, name: str) -> Estimate:
        """Share of right answers, with its interval."""
        return self._over(self.seeds(name)).accuracy(name)

    def difference(self, first: str, second: str) -> Difference:
        """What the second is better by, over the seeds in common, of which there must be one."""
        return self._over(self.seeds(first, second)).difference(first, second)

    def quantiles(self, first: str, second: str) -> Estimate:
        """The same with the interval of the draws themselves."""
        return self._over(self.seeds(first, second)).quantiles(first, second)

    def gains(self, first: str, second: str) -> Float64[np.ndarray, " number"]:
        """What the second is better by, draw by draw."""
        return self._over(self.seeds(first, second)).gains(first, second)

    def _over(self, seeds: tuple[int, ...]) -> Bootstrap:
        if seeds not in self._drawn:
            rows = {
                name: np.stack([by_seed[seed] for seed in seeds])
                for name, by_seed in self.answers.items()
                if by_seed.keys() >= set(seeds)
            }
            self._drawn[seeds] = Bootstrap.of(rows)
        return self._drawn[seeds]


def baselines_of(cell: Cell, study: Study, preset: Preset) -> tuple[str, ...]:
    """The names of what is judged beside a cell, in its order; of any cell, whether it is or not."""
    encoder, pixels = BASELINES
    is_usual = cell.method == study.cells(preset.is_paper)[0].method
    return encoder if is_usual else f"{encoder} of {COMPARED[cell.method]}", pixels


def read_comparison(study: Study, preset: Preset, out: Path, seeds: Sequence[int]) -> Comparison:
    """What the probe said of a study's cells so far; empty where the study isn't judged by it.

    Args:
        out: directory that holds the cells.

    Raises:
        InputError: cells or seeds were judged on different images.
    """
    if PROBE not in preset.judges_of(study):
        return Comparison({})
    records, places = {}, defaultdict[str, list[tuple[Cell, int]]](list)
    for cell in study.cells(preset.is_paper):
        if (settled := settle_length(cell, preset, out)) is None:
            continue
        for seed in seeds:
            folder = out / "cells" / preset.directory(settled) / f"seed-{seed}"
            if (folder / f"{PROBE}.json").is_file():
                name = str(folder / ANSWERS)
                # What lasts as long as another may be the same run.
                records[name] = records.get(name) or read_record(folder / ANSWERS)
                places[name].append((cell, seed))
    if records:
        check_same_images(records)
    answers: dict[str, dict[int, np.ndarray]] = {}
    for name, cells in places.items():
        judged = [right[_JUDGE][0] for right in records[name].right.values()]
        for cell, seed in cells:
            for row, right in zip((cell.name, *baselines_of(cell, study, preset)), judged, strict=False):
                answers.setdefault(row, {})[seed] = right
    return Comparison(answers)
