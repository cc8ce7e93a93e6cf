"""`emae study` as a user runs it, with its cells in this process."""

import contextlib
import io
import json
import subprocess
from collections.abc import Callable
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import IO

import pytest

from efficient_mae.cli import main
from efficient_mae.study import runs
from tests.tasks.conftest import flags

Study = Callable[..., tuple[int, dict]]


def in_process(command: list[str], stdout: int | IO[bytes], **_) -> CompletedProcess:
    """Runs a command in this process, which saves it its start."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed) if stdout == subprocess.PIPE else contextlib.nullcontext():
        status = main(command[command.index("efficient_mae") + 1 :])
    return CompletedProcess(command, status, printed.getvalue().encode())


@pytest.fixture
def study(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Study:
    """Runs the command with its cells in this process; returns status and JSON."""
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=in_process, PIPE=subprocess.PIPE))

    def run(name: str, **settings) -> tuple[int, dict]:
        status = main(["study", name, "--preset", "smoke", "--json", *flags(**settings)])
        printed, complaints = capsys.readouterr()
        last = printed.splitlines()[-1] if printed else ""
        return status, json.loads(last) if last.startswith("{") else {"complaints": complaints}

    return run
