"""What a study's answers decide: its hypotheses as they were said in advance, and one F test of a table.

Letters: R rows, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import stats

from efficient_mae.study.results.probed import BASELINES, Comparison
from efficient_mae.study.studies import Study
from efficient_mae.tasks.classify.probe.statistics import Difference, Estimate, holm
from efficient_mae.tasks.intervals import Interval

# Of all hypotheses of a study together, one-sided.
_LEVEL = 0.025
# A method helps no more than this, whichever way, where its interval lies within: it does not.
_POINT = 0.01


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the answers say of a hypothesis.

    Attributes:
        hypothesis: in words.
        difference: of two cells' accuracies, with its 95 % interval.
        seeds: that both have.
        p: one-sided: the share of the draws that lie on the wrong side of the bound.
        p_holm: corrected for the study's other hypotheses.
        shown: it counts as shown; if not, the interval is what is left open.
    """

    hypothesis: str
    difference: Estimate
    seeds: list[int]
    p: float
    p_holm: float
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a study decides.

    Attributes:
        seeds: that count: done with all cells, but for those that failed.
        planned: seeds that there are to be.
        learned: what the first cell is better by than the untrained encoder.
        answers: it is better by more than its interval; otherwise the study can't answer any hypothesis.
        decisions: in the order of the hypotheses.
        no_help: the interval of what the method gains lies below 0 or within 1 point of it, so that it doesn't help.
    """

    seeds: list[int]
    planned: int
    learned: Estimate
    answers: bool
    decisions: list[Decision]
    no_help: bool


@dataclass(frozen=True, kw_only=True)
class FTest:
    """Whether rows differ at all: analysis of variance of rows and seeds, of the seeds' mean accuracies.

    Attributes:
        rows: names of the cells.
        seeds: that all of them have.
        f: variance between rows over that which neither rows nor seeds account for.
        p: of so large an f where no row differs.
        differences: of each further row to the first, exploratory.
        p_holm: that of each, corrected for their number.
    """

    rows: list[str]
    seeds: list[int]
    f: float
    p: float
    differences: dict[str, Difference]
    p_holm: dict[str, float]


def decide(study: Study, probed: Comparison, seeds: Sequence[int], planned: int) -> Verdict | None:
    """Decide a study's hypotheses, as docs/results.md says in advance; None without any, or before two seeds.

    Args:
        probed: answers with the seeds that count, and no others.
        seeds: these.
        planned: seeds that there are to be.
    """
    pairs = [(one.first, one.second) for one in study.hypotheses]
    if not pairs:
        return None
    base = (BASELINES[0], pairs[0][0])
    if any(len(probed.seeds(*pair)) < 2 for pair in (base, *pairs)):
        return None
    learned = probed.quantiles(*base)
    ps = []
    for one in study.hypotheses:
        gains = probed.gains(one.first, one.second)
        wrong = gains <= one.bound if one.above else gains >= one.bound
        ps.append(float(1 + np.count_nonzero(wrong)) / (1 + len(gains)))
    decisions = [
        Decision(
            hypothesis=one.text,
            difference=probed.quantiles(one.first, one.second),
            seeds=list(probed.seeds(one.first, one.second)),
            p=p,
            p_holm=corrected,
            shown=learned.low > 0 and corrected <= _LEVEL,
        )
        for one, p, corrected in zip(study.hypotheses, ps, holm(ps), strict=True)
    ]
    gain = next(one.difference for one, of in zip(decisions, study.hypotheses, strict=True) if of.helps)
    return Verdict(
        seeds=list(seeds),
        planned=planned,
        learned=learned,
        answers=learned.low > 0,
        decisions=decisions,
        no_help=learned.low > 0 and (gain.high < 0 or -_POINT < gain.low <= gain.high < _POINT),
    )


def compare_rows(study: Study, probed: Comparison, paper: bool) -> FTest | None:
    """The F test of a table's rows that were probed; None of fewer than two rows or seeds.

    Args:
        paper: the rows are those of the paper's own preset.
    """
    wanted = study.compared or tuple(cell.name for cell in study.cells(paper))
    rows = probed.distinct(wanted)
    seeds = probed.seeds(*rows) if rows else ()
    if len(rows) < 2 or len(seeds) < 2:
        return None
    accuracies = np.array([[probed.answers[name][seed].mean() for seed in seeds] for name in rows])
    found = rows_and_seeds(accuracies)
    if found is None:
        return None
    differences = {name: probed.difference(rows[0], name) for name in rows[1:]}
    corrected = holm([one.p for one in differences.values()])
    p_holm = dict(zip(differences, corrected, strict=True))
    return FTest(rows=rows, seeds=list(seeds), f=found[0], p=found[1], differences=differences, p_holm=p_holm)


def rows_and_seeds(accuracies: Float64[np.ndarray, "R S"]) -> tuple[float, float] | None:
    """F of the rows and its p, of one accuracy for each row and seed; None where rows and seeds say all."""
    rows, seeds = accuracies.shape
    residual = accuracies - accuracies.mean(axis=1, keepdims=True) - accuracies.mean(axis=0) + accuracies.mean()
    left = float(np.square(residual).sum()) / ((rows - 1) * (seeds - 1))
    if left < np.finfo(np.float64).eps ** 2:
        return None
    f = seeds * float(accuracies.mean(axis=1).var(ddof=1)) / left
    return f, float(stats.f.sf(f, rows - 1, (rows - 1) * (seeds - 1)))


def verdict_in_words(verdict: Verdict) -> str:
    """As Markdown: a line for each hypothesis, and what follows."""
    counted = f"seeds {', '.join(map(str, verdict.seeds))}: {len(verdict.seeds)} of {verdict.planned}"
    lines = [f"**Decided** by ridge regression, {counted}.", ""]
    lines += ["| hypothesis | difference, points (95 % interval) | p, one-sided | p, Holm | |"]
    lines += ["| --- | ---: | ---: | ---: | --- |"]
    for one in verdict.decisions:
        said = "shown" if one.shown else "left open" if verdict.answers else "cannot be answered"
        lines.append(f"| {one.hypothesis} | {in_points(one.difference)} | {one.p:.2g} | {one.p_holm:.2g} | {said} |")
    base = f"The first row is better than the untrained encoder by {in_points(verdict.learned)} points"
    narrow = "as said in advance, are of the draws themselves; of few seeds they can be too narrow."
    lines += ["", f"These intervals and p, {narrow}"]
    lines += ["", f"{base}{'.' if verdict.answers else ': the study cannot answer any hypothesis.'}"]
    if verdict.no_help:
        lines += ["", "Efficient MAE does not help at this size."]
    return "\n".join(lines)


def f_test_in_words(test: FTest) -> str:
    """As Markdown: a sentence, and each row's difference to the first."""
    rows, seeds = len(test.rows), len(test.seeds)
    said = (
        f"**F test** of {', '.join(test.rows)} (rows and seeds, of the seeds' mean accuracies): "
        f"F({rows - 1}, {(rows - 1) * (seeds - 1)}) = {test.f:.2f}, p = {test.p:.2g}. Differences to the first, in "
        "points, with p corrected for their number (Holm): "
    )
    differences = (f"{name} {in_points(one)}, p = {test.p_holm[name]:.2g}" for name, one in test.differences.items())
    return said + "; ".join(differences) + "."


def in_points(one: Estimate | Interval) -> str:
    """A mean, and its interval, of shares of one, in hundredths."""
    return f"{100 * one.mean:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
