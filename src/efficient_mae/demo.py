"""`emae demo`: pre-train two small models on bundled images, judge one, and write their reports."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficient_mae.console import say
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.ranges import Location, Settings
from efficient_mae.recipes import recipe_settings
from efficient_mae.report.command import show_run
from efficient_mae.report.report import write_report
from efficient_mae.tasks.classify.knn import KnnAccuracy, KnnConfig, KnnResult, knn
from efficient_mae.tasks.classify.probe.command import ProbeConfig, probe
from efficient_mae.tasks.classify.probe.result import ProbeResult
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """Settings of `emae demo`."""

    out: Location = "runs/demo"
    """folder of its two runs, photographs and garments; the same command again resumes them"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class DemoResult(KnnResult):
    """What the models have learned.

    Attributes:
        ridge: accuracy, as k-NN's, of ridge regression on the means of an image's four quarters, of raw pixels on all
            of them.
        photographs: run directory of the model whose reconstructions are looked at.
        seconds: that it all took.
        report: file, on garments.
    """

    ridge: KnnAccuracy
    photographs: str
    seconds: float
    report: str


def demo(config: DemoConfig) -> DemoResult:
    """Pre-train by the recipes `demo_photographs` and `demo`, then compare accuracies on garments.

    Raises:
        InputError: a directory holds another run.
    """
    begin = time.monotonic()
    photographs, garments = (Path(config.out) / name for name in ("photographs", "garments"))
    for run, recipe in ((photographs, "demo_photographs"), (garments, "demo")):
        pretrain(PretrainConfig(**recipe_settings(recipe), out=str(run), device=config.device))
    say("classifying 2,000 held-out garments: by nearest neighbours, and by ridge regression")
    near = knn(KnnConfig(weights=str(garments), device=config.device))
    told = probe(
        ProbeConfig(
            weights=str(garments),
            labels=None,
            pool="grid2",
            judges=("ridge",),
            baselines=True,
            device=config.device,
        )
    )
    for result, name in ((near, "knn"), (told, "probe")):
        replace_file(garments / f"{name}.json", json.dumps(result.plain(), indent=1).encode())
    write_report(photographs)
    return DemoResult(
        **vars(near),
        ridge=_accuracies(told),
        photographs=str(photographs),
        seconds=round(time.monotonic() - begin, 1),
        report=str(write_report(garments)),
    )


def _accuracies(told: ProbeResult) -> KnnAccuracy:
    trained, untrained, raw_pixels = (row.judgements["ridge"].accuracy.mean for row in told.encoders)
    return KnnAccuracy(raw_pixels=raw_pixels, untrained=untrained, trained=trained)


def show_demo(result: DemoResult, console: Console) -> None:
    """Print the accuracies, what to look at, and how to load the encoder."""
    title = f"{result.data}: {result.test_images:,} held-out images, {result.train_images:,} labels"
    table = Table("features", "k-NN top-1", "ridge regression", title=title)
    for name, accuracy in vars(result.accuracy).items():
        table.add_row(name.replace("_", " "), f"{accuracy:.2%}", f"{getattr(result.ridge, name):.2%}")
    console.print(table)
    console.print(_verdict(result), markup=False)
    console.print(
        f"\nFigure 2, and reconstructions in colour: {Path(result.photographs) / 'report.html'}", markup=False
    )
    show_run(Path(result.weights), console)


def _verdict(result: DemoResult) -> str:
    """Whether the trained encoder beats what stands beside it, judge by judge."""
    said = []
    for judge, found in (("k-NN", result.accuracy), ("ridge regression", result.ridge)):
        beside = {"raw pixels": found.raw_pixels, "an untrained encoder": found.untrained}
        better = [name for name, accuracy in beside.items() if found.trained > accuracy]
        not_better = [name for name in beside if name not in better]
        parts = [f"better than {' and '.join(better)}"] * bool(better)
        parts += [f"no better than {' and '.join(not_better)}"] * bool(not_better)
        said.append(f"by {judge} {', '.join(parts)}")
    return f"The trained encoder tells garments {'; '.join(said)}."
