"""`emae doctor`: whether training can run here, what is in its way, and what it would wait for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from efficient_mae.bench.doctor_data import IMAGE_CHECKS
from efficient_mae.bench.doctor_disk import DISK_CHECKS
from efficient_mae.bench.doctor_finding import Finding, Plan, problem
from efficient_mae.bench.doctor_machine import MACHINE_CHECKS
from efficient_mae.bench.doctor_software import COMPUTING_CHECKS, SOFTWARE_CHECKS
from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import DataChoice
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.machine.facts import describe_machine, usual_workers
from efficient_mae.errors import InputError
from efficient_mae.ranges import Location, NonNegativeInt, PositiveInt
from efficient_mae.tasks.pretrain_config import ModelChoice, build_model

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(ModelChoice, DataChoice, ReadingSettings):
    """Settings of `emae doctor`."""

    data: Location | None = None
    """images that would be trained on, as for pretrain; they are read, and a step is timed beside (null: neither)"""
    out: Location = "runs/run"
    """run directory that would be written; nothing stays in it"""
    batch_size: PositiveInt | None = None
    """images of a step of one process (null: 16 on a CPU, 128 on a GPU)"""
    num_workers: NonNegativeInt | None = None
    """processes that read images, for each training process (null: 1 on a CPU, up to 12 on a GPU)"""
    keep_checkpoints: PositiveInt = 2
    """checkpoints that would stay on the disk"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check and its :class:`~efficient_mae.bench.doctor_finding.Finding`.

    Attributes:
        name: of what was looked at.
        status, found, advice: the finding's.
        seconds: that it took.
    """

    name: str
    status: str
    found: str
    advice: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DoctorResult(Result):
    """Whether training can run.

    Attributes:
        checks: in the order in which they were made.
        problems: number of checks of this status.
        notes: likewise.
        machine: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it.
    """

    checks: list[Check]
    problems: int
    notes: int
    machine: dict[str, Any]

    @property
    def status(self) -> int:
        """2 if there is something to mend."""
        return 2 if self.problems else 0


def doctor(config: DoctorConfig) -> DoctorResult:
    """Check software, device, machine, output directory and, if given, data; a check that fails stops no other.

    Raises:
        InputError: no such model.
    """
    plan = _plan(config)
    checks = SOFTWARE_CHECKS | COMPUTING_CHECKS | MACHINE_CHECKS | DISK_CHECKS
    if config.data is not None:
        checks |= IMAGE_CHECKS
    rows = [_examine(name, check, plan) for name, check in checks.items()]
    problems, notes = (sum(row.status == status for row in rows) for status in ("problem", "note"))
    return DoctorResult(checks=rows, problems=problems, notes=notes, machine=describe_machine(plan.device))


def _plan(config: DoctorConfig) -> Plan:
    """The training that is asked about; on a CPU where the device can't be had, of which a check then tells."""
    with torch.device("meta"):
        model = build_model(config)
    try:
        device = find_device(config.device)
    except InputError:
        device = torch.device("cpu")
    return Plan(
        settings=config,
        images=config,
        asked_device=config.device,
        device=device,
        precision=resolve_precision(config.precision, device),
        data=config.data,
        choice=config.alone(),
        out=config.out,
        img_shape=(model.config.in_chans, *model.config.img_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch_size=config.batch_size or (128 if device.type == "cuda" else 16),
        num_workers=usual_workers(device) if config.num_workers is None else config.num_workers,
        keep_checkpoints=config.keep_checkpoints,
    )


def _examine(name: str, check: Callable[[Plan], Finding], plan: Plan) -> Check:
    begin = time.perf_counter()
    try:
        finding = check(plan)
    except InputError as error:
        finding = problem(str(error), "mend what it names")
    except Exception as error:  # whatever is broken here: the other checks go on
        text = " ".join(str(error).split())
        finding = problem(f"the check itself failed: {type(error).__name__}: {text}", "mend what it names")
    taken = time.perf_counter() - begin
    if taken > 1:
        say(f"{name}: took {taken:.0f} s")
    return Check(name=name, **vars(finding), seconds=round(taken, 2))


def show_doctor(result: DoctorResult, console: Console) -> None:
    """Print a line a check, and whether training can run."""
    for row in result.checks:
        style, advice = _STYLES[row.status], f"; {row.advice}" if row.advice else ""
        text = escape(f"{row.name:15}{row.found}{advice}")
        console.print(f"[{style}]{row.status:9}[/]{text}", highlight=False)
    problems, notes = result.problems, result.notes
    verdict = f"{problems} to be mended before training can run" if problems else "training can run"
    seconds = sum(row.seconds for row in result.checks)
    console.print(f"{verdict}; {notes} notes; checked in {seconds:.0f} s", highlight=False)
