"""`emae report`: write a run's report again; `emae pretrain` ends with it."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from efficient_mae.command import Result, resolve
from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.interop import load_snippet, read_metadata
from efficient_mae.ranges import Location, Settings
from efficient_mae.report.report import write_report
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.registry import RunResult


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Settings of `emae report`."""

    run: Location
    """run directory, of pre-training, of a tokenizer, of segmentation or of detection"""


# By the task of the run; those of pre-training and of versions that wrote down none have the usual one. They are
# named here and imported when they are asked for: pre-training need not wait for what other tasks import.
_WRITERS = {
    "tokenizer": "report.tokenizer:write_tokenizer_report",
    "segment": "report.predictions:write_segment_report",
    "detect": "report.predictions:write_detect_report",
}


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """What was written.

    Attributes:
        report: file.
    """

    report: str


def report(config: ReportConfig) -> ReportResult:
    """Write `report.html` of a run.

    Raises:
        InputError: not a run directory, or one without weights.
    """
    run = Path(config.run)
    write = resolve(_WRITERS.get(read_settings(run).task or "", write_report))
    return ReportResult(report=str(write(run)))


def show_report(result: ReportResult, console: Console) -> None:
    """Print where the report is."""
    console.print(f"report: {result.report}", markup=False)


@dataclass(frozen=True, kw_only=True)
class PretrainResult(RunResult):
    """A run that is done, and what it leaves.

    Attributes:
        encoder: its weights' file.
        report: file.
    """

    encoder: str
    report: str


def pretrain_and_report(config: PretrainConfig) -> PretrainResult:
    """Pre-train, then write the report."""
    run = pretrain(config)
    if place().rank == 0:
        write_report(run)
    return PretrainResult(run=str(run), encoder=str(run / "encoder.safetensors"), report=str(run / "report.html"))


def show_pretrain(result: PretrainResult, console: Console) -> None:
    """Print where everything is, and how to load the encoder."""
    show_run(Path(result.run), console)


def show_run(run: Path, console: Console) -> None:
    """Print where a finished run's report and reconstructions are, and how to load its encoder."""
    encoder = run / "encoder.safetensors"
    pictures = sorted((run / "figures").glob("panel-*.png"))
    console.print(f"\nreport:          {run / 'report.html'}", markup=False)
    if pictures:
        console.print(f"reconstructions: {pictures[-1]}", markup=False)
    console.print(f"encoder:         {encoder}\n\nLoad it with timm:\n", markup=False)
    console.print(load_snippet(read_metadata(encoder)[0], encoder), markup=False, highlight=False)
