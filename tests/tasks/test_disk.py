"""Runs whose disk is full, read-only, or doesn't keep what was written."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.storage import checkpoint as module
from efficient_mae.engine.storage import run_directory
from efficient_mae.engine.storage.checkpoint import find_checkpoints
from efficient_mae.engine.storage.data_record import DataRecord
from efficient_mae.errors import InputError
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.engine.storage.test_checksums import cut, flip
from tests.forks import ForkServer

from .conftest import TOTAL_STEPS, assert_same_result, rows, short_run

LAST, BEFORE = f"step-{TOTAL_STEPS:08d}", f"step-{TOTAL_STEPS - 4:08d}"


def unfinished(run: Path, out: Path) -> Path:
    """A copy of a run that still lacks its encoder."""
    shutil.copytree(run, out)
    (out / "encoder.safetensors").unlink()
    return out


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("processes", "name", "spoil"),
    [(1, "model.safetensors", flip), (1, "state.json", Path.unlink), (2, "optimizer.safetensors", cut)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    server: ForkServer,
    alone: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    processes: int,
    name: str,
    spoil: Callable,
):
    expected = alone(processes)
    out = unfinished(expected, tmp_path / "run")
    spoil(out / "checkpoints" / LAST / name)
    ended = server.start(short_run(images, out), processes).wait()
    assert all(one.status == 0 for one in ended), ended
    said = ended[0].stderr
    assert f"{LAST} is damaged ({name} " in said and f"after step {TOTAL_STEPS - 4} of" in said
    assert_same_result(out, expected)
    assert rows(out) == rows(expected)
    assert (out / "checkpoints" / f"damaged-{LAST}").is_dir()
    assert [path.name for path in find_checkpoints(out / "checkpoints")] == [BEFORE, LAST]


def test_without_a_whole_checkpoint_nothing_is_touched(
    server: ForkServer, alone: Callable[..., Path], images: Path, tmp_path: Path
):
    out = unfinished(alone(1), tmp_path / "run")
    assert server.start(short_run(images, out)).wait()[0].status == 0  # the settings name this directory from here on
    (out / "encoder.safetensors").unlink()
    flip(out / "checkpoints" / LAST / "model.safetensors")
    cut(out / "checkpoints" / BEFORE / "state.json")
    before = contents(out)
    (ended,) = server.start(short_run(images, out)).wait()
    assert ended.status == 2 and len(ended.stderr.splitlines()) == 1
    assert "no checkpoint is whole" in ended.stderr
    assert f"{LAST}: model.safetensors isn't" in ended.stderr and f"{BEFORE}: state.json isn't" in ended.stderr
    assert contents(out) == before


def test_damaged_weights_are_not_loaded(alone: Callable[..., Path], tmp_path: Path):
    out = unfinished(alone(1), tmp_path / "run")
    emae.load(out)
    flip(out / "checkpoints" / LAST / "model.safetensors")
    with pytest.raises(InputError, match=f"{LAST}: damaged .model.safetensors isn't what was written"):
        emae.load(out)
    emae.load(out / "checkpoints" / BEFORE)


def test_a_damaged_shard_is_named_and_the_checkpoint_before_taken(server: ForkServer, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    arguments = short_run(images, out, parallel="fsdp", epochs=4, panel_every=4)
    assert all(one.status == 0 for one in server.start(arguments, 2).wait())
    expected = (out / "encoder.safetensors").read_bytes()
    (out / "encoder.safetensors").unlink()
    last, name = out / "checkpoints" / "step-00000020", "model/shard-00002-model-00001-of-00001.safetensors"
    flip(last / name)
    with pytest.raises(InputError, match=f"damaged .{name} isn't"):
        emae.load(out)
    ended = server.start(arguments, 2).wait()
    assert all(one.status == 0 for one in ended), ended
    assert f"({name} isn't what was written)" in ended[0].stderr and "after step 16 of 20" in ended[0].stderr
    assert (out / "encoder.safetensors").read_bytes() == expected


def test_a_checkpoint_that_does_not_fit(server: ForkServer, alone: Callable[..., Path], images: Path, tmp_path: Path):
    """The system refuses it in the middle of a file."""
    out = tmp_path / "run"
    size = (alone(1) / "checkpoints" / LAST / "optimizer.safetensors").stat().st_size
    (ended,) = server.start(short_run(images, out), largest_file=size - 1000).wait()
    assert ended.status == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("emae: the file is larger than the system allows here (")
    assert not list((out / "checkpoints").iterdir())
    (ended,) = server.start(short_run(images, out)).wait()
    assert ended.status == 0, ended.stderr
    assert_same_result(out, alone(1))


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "can only be read"), (errno.EIO, "the disk fails")],
)
def test_a_disk_that_fails_under_way_is_one_line(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    said: str,
):
    save_tensors = module.save_tensors

    def failing(file: Path, *arguments):
        if "00000008" in str(file):
            raise OSError(code, "it fails", str(file))
        save_tensors(file, *arguments)

    monkeypatch.setattr(module, "save_tensors", failing)
    assert main(short_run(images, tmp_path / "run", num_workers=0)) == 1
    spoken = capsys.readouterr().err
    assert "Traceback" not in spoken
    assert said in spoken.splitlines()[-1] and "model.safetensors); the last checkpoint is intact" in spoken
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
):
    def refused(file: Path, _: bytes):
        raise OSError(code, "no", str(file))

    monkeypatch.setattr(run_directory, "replace_file", refused)
    assert main(short_run(images, tmp_path / "run")) == 2
    assert "cannot be written (no); name another" in capsys.readouterr().err


def claim(out: Path) -> None:
    config = PretrainConfig(data="images", out=str(out))
    with run_directory.claimed_run_directory(out, "pretrain", config, (), ALONE, DataRecord(3, "")):
        pass


def test_what_a_kill_left_is_cleared_away(tmp_path: Path):
    out = tmp_path / "run"
    claim(out)
    for name in ("figures/.partial-a.png", "checkpoints/.partial-step-00000007/model/x", ".partial-machine.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    claim(out)
    assert not list(out.rglob(".partial-*"))


def test_a_disk_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def unknown(*_: object):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    claim(tmp_path / "run")
    assert "its disk has no locks" in capsys.readouterr().err and (tmp_path / "run" / "config.yaml").is_file()


def test_a_run_that_was_killed_before_the_directory_was_its_own(tmp_path: Path):
    (tmp_path / ".partial-config.yaml").write_bytes(b"half")
    claim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "data.json"]
