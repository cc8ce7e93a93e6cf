"""`emae report`: write a run's report again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from efficient_mae.report.report import write_report


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `emae report`."""

    weights: str
    """run directory"""


def report(config: ReportConfig) -> dict[str, Any]:
    """Write `report.html` of a run.

    Raises:
        InputError: not a run directory, or one without weights.
    """
    return {"report": str(write_report(Path(config.weights)))}


def show_report(result: dict[str, Any], console: Console) -> None:
    """Print where the report is."""
    console.print(f"report: {result['report']}", markup=False)
