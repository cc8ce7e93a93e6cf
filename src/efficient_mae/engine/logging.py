"""What a run writes down and shows: metrics.jsonl, TensorBoard, and a line or a bar for the person who waits."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from efficient_mae.console import console
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.engine.storage.run_directory import METRICS, TENSORBOARD
from efficient_mae.errors import InputError


class MetricsLog:
    """metrics.jsonl and TensorBoard of a run; a resumed run carries on from its checkpoint's step.

    Args:
        run_dir: where `metrics.jsonl` and `tensorboard/` lie.
        step: steps already done; what a run that was killed had logged beyond them is dropped.
    """

    def __init__(self, run_dir: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only runs that log pay for it

        self.path = run_dir / METRICS
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        replace_file(self.path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        """Log the figures of a step."""
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Finish writing."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, up to the first that is cut short or none; none if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = parse_json(line, str(path))
        except InputError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


class ProgressDisplay:
    """A progress bar on a terminal, one line that is written over in a notebook, plain lines elsewhere.

    Silent where `show` is False.

    Args:
        total: steps of the whole run.
        done: steps already done.
        show: whether this process speaks.
        clock: seconds spent in training since those steps.
    """

    def __init__(self, total: int, done: int, show: bool, clock: Callable[[], float]):
        self.total, self.first = total, done
        self._show, self._clock = show, clock
        self._bar: Progress | None = None
        self._text = ""
        if show and console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
            self._task = self._bar.add_task("starting", total=total, completed=done)
            self._bar.start()

    def advance(self, step: int) -> None:
        """A step is done."""
        if self._bar:
            self._bar.update(self._task, completed=step, description=self._text or f"step {step}/{self.total}")

    def report(self, row: dict[str, float]) -> None:
        """Show the figures of a logged step, and how long the steps to come will take."""
        if not self._show:
            return
        step = int(row["step"])
        missing = "no loss" if "grad_norm" in row else "all steps skipped"
        loss = f"loss {row['loss']:.4f}" if "loss" in row else missing
        left = int(self._clock() / max(1, step - self.first) * (self.total - step))
        text = (
            f"step {step}/{self.total}  epoch {row['epoch']:.2f}  {loss}  "
            f"{row['images_per_second']:,.0f} images/s  waiting for data {row['data_wait']:.0%}  "
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )
        before, self._text = self._text, text
        if self._bar:
            self.advance(step)
        elif console.is_jupyter:  # a carriage return brings a cell's output to the begin of its line
            print(f"\r{text:{len(before)}}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
        elif self._text and console.is_jupyter:
            print(file=sys.stderr)


class Stopwatch:
    """Images a second and the share of the time spent waiting for data, since the last reading."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._begin = clock, clock()
        self._started, self._waited, self._images = 0.0, 0.0, 0

    def time(self) -> float:
        """Seconds since it was made, less those in which it was stopped."""
        return self._clock() - self._begin

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Within, no time passes for it: what is done there is no training."""
        stopped_at = self.time()
        try:
            yield
        finally:
            self._begin = self._clock() - stopped_at

    def wait_for(self, get: Callable[[], Any]) -> Any:
        """Call a function that may wait for data, and count how long it took."""
        begin = self.time()
        value = get()
        self._waited += self.time() - begin
        return value

    def count(self, images: int) -> None:
        """So many images have been trained on."""
        self._images += images

    def read(self) -> dict[str, float]:
        """`images_per_second` and `data_wait` (0 to 1); starts anew."""
        now = self.time()
        elapsed = max(now - self._started, 1e-9)
        figures = {"images_per_second": self._images / elapsed, "data_wait": self._waited / elapsed}
        self._started, self._waited, self._images = now, 0.0, 0
        return figures
