"""A tokenizer's report: one page that needs nothing beside itself; `emae tokenizer` ends with it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import TOKENIZER_FILE, load_tokenizer
from efficient_mae.report.curves import loss_curve, svg_data_uri, words_figure
from efficient_mae.report.page import panels_of, render
from efficient_mae.report.run_files import RunFiles, read_run
from efficient_mae.tasks.codebook import CODEBOOK, CodebookUse
from efficient_mae.tasks.registry import TASKS, RunResult, train
from efficient_mae.tasks.tokenizer import TokenizerConfig

# Settings that the page tells of.
_SHOWN = ("data", "vocab_size", "stride", "in_chans", "kl_weight")


@dataclass(frozen=True, kw_only=True)
class TokenizerResult(RunResult):
    """A tokenizer that is trained, and how it uses its vocabulary.

    Attributes:
        tokenizer: its weights' file.
        digest: by which a model knows it.
        report: file.
        used: share of the words that occur in the images that were looked at.
        perplexity: of the words.
        mean_squared_error: of the pixels, from 0 to 1, that are drawn of the tokens.
    """

    tokenizer: str
    digest: str
    report: str
    used: float
    perplexity: float
    mean_squared_error: float


def tokenizer_and_report(config: TokenizerConfig) -> TokenizerResult:
    """Train a tokenizer, then write the report."""
    run = Path(train(TASKS["tokenizer"], config).run)
    if place().rank == 0:
        write_tokenizer_report(run)
    use = read_use(run)
    if use is None:
        raise InputError(f"{run}: holds no {CODEBOOK}; remove its {TOKENIZER_FILE} and give the same command again")
    return TokenizerResult(
        run=str(run),
        tokenizer=str(run / TOKENIZER_FILE),
        digest=load_tokenizer(run).digest,
        report=str(run / "report.html"),
        used=use.used,
        perplexity=use.perplexity,
        mean_squared_error=use.mean_squared_error,
    )


def show_tokenizer(result: TokenizerResult, console: Console) -> None:
    """Print where everything is, and how the vocabulary is used."""
    pictures = sorted((Path(result.run) / "figures").glob("panel-*.png"))
    console.print(f"\nreport:          {result.report}", markup=False)
    if pictures:
        console.print(f"reconstructions: {pictures[-1]}", markup=False)
    console.print(f"tokenizer:       {result.tokenizer}", markup=False)
    console.print(
        f"vocabulary:      {result.used:.0%} of the words in use, perplexity {result.perplexity:.1f}; "
        f"mean squared error {result.mean_squared_error:.4f}",
        markup=False,
    )


def write_tokenizer_report(folder: Path) -> Path:
    """Write `report.html` into the directory of a tokenizer's run, and return where it is.

    Raises:
        InputError: no such directory, or a file in it that can't be understood.
        OSError: the page cannot be written.
    """
    run, use = read_run(folder), read_use(folder)
    for name in _SHOWN:
        if name not in run.settings:
            raise InputError(f"{folder}: its config.yaml doesn't say {name}, so it is of no tokenizer")
    page = render(
        "tokenizer.html",
        run,
        tiles=list(_tiles(run, use)),
        loss_curve=svg_data_uri(loss_curve(run.metrics)) if run.metrics else None,
        panels=panels_of(run),
        use=use,
        words=svg_data_uri(words_figure(use.counts)) if use else None,
    )
    replace_file(folder / "report.html", page.encode())
    return folder / "report.html"


def read_use(folder: Path) -> CodebookUse | None:
    """What a finished run found of its vocabulary's use; None if it isn't there.

    Raises:
        InputError: it holds something else.
    """
    file = folder / CODEBOOK
    if not file.is_file():
        return None
    content = parse_json(file.read_bytes(), str(file))
    try:
        use = CodebookUse(**content)
        figures = [use.images, use.words, use.used, use.perplexity, use.mean_squared_error, *use.counts]
    except TypeError:
        use, figures = None, []
    if use is None or not use.counts or not all(_is_figure(one) for one in figures):
        raise InputError(f"{file}: holds no figures of a vocabulary's use; remove it")
    return use


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _tiles(run: RunFiles, use: CodebookUse | None) -> Iterator[tuple[str, str, str]]:
    """(heading, figure, remark) of what one wants to know first."""
    if run.metrics:
        first, last = run.metrics[0], run.metrics[-1]
        yield "Loss", f"{last['loss']:.4f}", f"from {first['loss']:.4f} at step {first['step']:,}"
        yield "Trained", f"{last['epoch']:.4g} epochs", f"{last['step']:,} steps"
    if use:
        yield "Words in use", f"{use.used:.0%}", f"of {use.words:,}, in {use.images:,} images"
        yield "Perplexity", f"{use.perplexity:.1f}", "words that occur equally often would be as hard to guess"
        yield "Squared error", f"{use.mean_squared_error:.4f}", "mean, of pixels from 0 to 1"
    if run.skipped:
        yield "Steps skipped", f"{len(run.skipped):,}", "loss or gradient not finite; see emae replay"
