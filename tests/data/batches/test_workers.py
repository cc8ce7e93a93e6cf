"""A worker that dies or hangs ends the run with one line that says which, and at which image."""

import os
import re
import signal
import time
from itertools import islice
from pathlib import Path

import pytest

from efficient_mae.cli import main
from efficient_mae.data import (
    EvalTransform,
    PretrainTransform,
    Reading,
    ResumableBatchSampler,
    TrainDataset,
    make_eval_loader,
    make_train_loader,
    open_source,
)
from efficient_mae.data.sources.folder import FolderSource
from efficient_mae.errors import WorkerFailure
from tests.tasks.conftest import TINY, flags, write_images

# The image at which a worker meets its fate.
TRAP = 17
CAUSES = {
    "SIGKILL": "the system does so when memory runs out",
    "SIGSEGV": "a decoder may have failed on the image",
    "SIGBUS": "/dev/shm may be full",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("trap"), 43)


def set_trap(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Processes that this one forks from now on don't survive the opening of an image."""
    opened, parent = FolderSource.open, os.getpid()

    def trapped(self: FolderSource, index: int):
        if index == TRAP and os.getpid() != parent:
            if how == "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits for a file server does
                time.sleep(600)
            os.kill(os.getpid(), signal.Signals[how])
            time.sleep(600)
        return opened(self, index)

    monkeypatch.setattr(FolderSource, "open", trapped)


def failure_of(loader) -> str:
    # pytest.raises would keep the loader alive, to be ended by the garbage collector, which takes torch 5 s
    try:
        list(islice(loader, 30))
    except WorkerFailure as error:
        return str(error)
    return "nothing happened"


@pytest.mark.parametrize("how", CAUSES)
def test_a_worker_that_dies(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch):
    set_trap(monkeypatch, how)
    source = open_source(str(folder))
    data = TrainDataset(source, PretrainTransform((16, 16), Reading(1)), 0)
    message = failure_of(make_train_loader(data, ResumableBatchSampler(43, 8, 0), num_workers=2))
    name = re.escape(source.sample_name(TRAP))
    expected = rf"data worker [01] \(process \d+, at {name}\) was ended by {how}; {CAUSES[how]}[^\n]*"
    assert re.fullmatch(expected, message), message


def test_a_worker_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    set_trap(monkeypatch, "hang")
    source = open_source(str(folder))
    data = TrainDataset(source, PretrainTransform((16, 16), Reading(1)), 0)
    message = failure_of(make_train_loader(data, ResumableBatchSampler(43, 8, 0), num_workers=1, timeout=2))
    name = re.escape(source.sample_name(TRAP))
    found = re.match(rf"no batch came for 2 seconds: data worker 0 \(process (\d+), at {name}\); [^\n]*$", message)
    assert found, message
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)


def test_a_worker_of_an_evaluation_that_dies(folder: Path, monkeypatch: pytest.MonkeyPatch):
    set_trap(monkeypatch, "SIGKILL")
    source = open_source(str(folder))
    message = failure_of(make_eval_loader(source, EvalTransform((16, 16), Reading(1)), 8, num_workers=1))
    assert f"at {source.sample_name(TRAP)}) was ended by SIGKILL" in message


@pytest.mark.parametrize("how", ["hang", "SIGKILL"])
def test_a_run_ends_with_the_cause(
    folder: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    set_trap(monkeypatch, how)
    settings = flags(data=folder, out=tmp_path / "run", epochs=2, batch_size=8, data_timeout=2, **TINY)
    assert main(["pretrain", *settings]) == 1
    usual = ("pre-training", "images of", "an epoch's", "step")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(usual)]
    assert len(lines) == 1 and lines[0].startswith("emae: ") and "Traceback" not in lines[0]
    assert open_source(str(folder)).sample_name(TRAP) in lines[0]


def test_a_timeout_that_cannot_be(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = flags(data=folder, out=tmp_path / "run", epochs=1, batch_size=8, data_timeout=-1, **TINY)
    assert main(["pretrain", *settings]) == 2
    assert "data_timeout=-1.0: must be at least 0" in capsys.readouterr().err


def test_what_isnt_about_workers_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def bug(self: FolderSource, index: int):
        raise RuntimeError("a bug")

    monkeypatch.setattr(FolderSource, "open", bug)
    data = TrainDataset(open_source(str(folder)), PretrainTransform((16, 16), Reading(1)), 0)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        next(iter(make_train_loader(data, ResumableBatchSampler(43, 8, 0))))
    assert not isinstance(caught.value, WorkerFailure)
