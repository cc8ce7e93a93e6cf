"""`emae demo`: pre-train a small model on bundled images, judge it, and write its report."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from efficient_mae.console import say
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.ranges import Location, Settings
from efficient_mae.recipes import recipe_settings
from efficient_mae.report.command import show_run
from efficient_mae.report.report import write_report
from efficient_mae.tasks.classify.knn import KnnConfig, KnnResult, knn, show_knn
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """Settings of `emae demo`."""

    out: Location = "runs/demo"
    """run directory; the same command again resumes the run in it"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class DemoResult(KnnResult):
    """What the model has learned.

    Attributes:
        seconds: that it all took.
        report: file.
    """

    seconds: float
    report: str


def demo(config: DemoConfig) -> DemoResult:
    """Pre-train by the recipe `demo`, then compare k-NN accuracies.

    Raises:
        InputError: the directory holds another run.
    """
    begin = time.monotonic()
    run = pretrain(PretrainConfig(**recipe_settings("demo"), out=config.out, device=config.device))
    say("classifying 2,000 held-out images by their nearest neighbours")
    result = knn(KnnConfig(weights=str(run), device=config.device))
    replace_file(run / "knn.json", json.dumps(result.plain(), indent=1).encode())
    report = write_report(run)
    return DemoResult(**vars(result), seconds=round(time.monotonic() - begin, 1), report=str(report))


def show_demo(result: DemoResult, console: Console) -> None:
    """Print the accuracies, what to look at, and how to load the encoder."""
    show_knn(result, console)
    show_run(Path(result.weights), console)
