"""What `emae probe` finds, and how it is shown."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.tasks.classify.probe.statistics import Difference, Estimate


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge says of an encoder's features.

    Attributes:
        accuracy: share of the held-out images classified rightly, 0 to 1.
        accuracies: the same of each label subset, by seed.
        strengths: of the penalty that was chosen for each; None where there is none.
    """

    accuracy: Estimate
    accuracies: list[list[float]]
    strengths: list[list[float]] | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A row of the table.

    Attributes:
        encoder: as given, or what stands beside the encoders.
        seeds: files that were found for it.
        width: values of a feature.
        judgements: by judge.
    """

    encoder: str
    seeds: int
    width: int
    judgements: dict[str, Judgement]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows compared, answer by answer.

    Attributes:
        judge: that both were judged by.
        first, second: names of the rows.
        difference: what the second is better by; its interval is over seeds, label subsets and held-out images.
        p_holm: the difference's p, corrected for all pairs of this judge.
        mcnemar: p of McNemar's exact test, of images that are classified rightly by more than half of the label
            subsets' classifiers; None of several seeds.
    """

    judge: str
    first: str
    second: str
    difference: Difference
    p_holm: float
    mcnemar: float | None


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """How encoders are judged.

    Attributes:
        data: that the images are of.
        pool: what a feature was.
        labels: images of each label subset.
        subsets: their number.
        test_images: held-out images that could be read.
        damaged: the reason, by name, of each image of either part that could not be.
        encoders: in the order given, then what stands beside them.
        pairs: every two of these.
        out: file of the single answers.
    """

    data: str
    pool: str
    labels: int
    subsets: int
    test_images: int
    damaged: dict[str, str]
    encoders: list[Judged]
    pairs: list[Pair]
    out: str | None = None


def show_probe(result: ProbeResult, console: Console) -> None:
    """Print what :func:`efficient_mae.probe` found."""
    of = (
        f"{result.subsets} subsets of {result.labels:,} labels" if result.subsets > 1 else f"{result.labels:,} labels"
    )
    judges = list(result.encoders[0].judgements)
    title = f"{result.data}: top-1 on {result.test_images:,} held-out images, {of} (95 % interval)"
    table = Table("features", *judges, title=title)
    for row in result.encoders:
        shown = [row.judgements[judge].accuracy for judge in judges]
        table.add_row(row.encoder, *(f"{one.mean:.2%} ({one.low:.1%} to {one.high:.1%})" for one in shown))
    console.print(table)
    if not result.pairs:
        return
    table = Table("difference", "judge", "points (95 % interval)", "p", "p, Holm", "McNemar's p")
    for pair in result.pairs:
        one = pair.difference
        points = f"{100 * one.mean:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
        exact = "" if pair.mcnemar is None else f"{pair.mcnemar:.2g}"
        table.add_row(
            f"{pair.second} - {pair.first}", pair.judge, points, f"{one.p:.2g}", f"{pair.p_holm:.2g}", exact
        )
    console.print(table)
