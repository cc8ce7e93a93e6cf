"""What every report is: one page, made of a template beside this file, that needs nothing beside itself."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from efficient_mae import __version__
from efficient_mae.report.curves import data_uri
from efficient_mae.report.run_files import RunFiles

# Panels of earlier epochs: each may be two megabytes.
_EARLIER_PANELS = 2


def render(template: str, run: RunFiles, **values: Any) -> str:
    """The page of a run.

    Args:
        template: its name.
        values: what the template calls by these names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["dumps"] = json.dumps
    return environment.get_template(template).render(
        name=run.folder.resolve().name,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        run=run,
        **values,
    )


def panels_of(run: RunFiles) -> list[tuple[str, str]]:
    """(what it is, data URI) of the last picture that was drawn in training and a few earlier ones, newest first."""
    if not run.panels:
        return []
    *earlier, last = run.panels
    spread = np.unique(np.linspace(0, len(earlier) - 1, _EARLIER_PANELS).round().astype(int)) if earlier else []
    chosen = [last, *(earlier[index] for index in reversed(spread))]
    return [(_epoch_of(panel), data_uri(panel.read_bytes(), "image/png")) for panel in chosen]


def _epoch_of(panel: Path) -> str:
    number = panel.stem.rsplit("-", 1)[-1]
    return f"after epoch {int(number)}" if number.isdigit() else panel.stem
