"""`emae doctor` by its command line: each thing that can be wrong is made wrong, and found; nothing else stops."""

import collections
import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_mae.bench import doctor_data, doctor_machine, doctor_software
from efficient_mae.cli import main
from efficient_mae.engine.machine import facts as machine
from tests.tasks.conftest import write_images

SMALL = ["--model", "mae_vit_tiny_patch4", "--img_size", "16", "--in_chans", "1", "--depth", "1"]
SMALL += ["--decoder_depth", "1", "--decoder_embed_dim", "32", "--precision", "fp32"]
PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NAMES = ["python", "libraries", "extras", "device", "precision", "numerics", "a step", "threads", "memory"]
NAMES += ["shared memory", "open files", "processes", "out", "disk space", "disk speed"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, and not among other processes; the loader is timed for a moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_data, "_SECONDS", 0.2)
    for name in (*PROCESSES, "OMP_NUM_THREADS", *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)


def examine(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and what the doctor says, by check."""
    status = main(["doctor", *SMALL, *arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    checks = {row["name"]: row for row in result["checks"]}
    assert list(checks)[: len(NAMES)] == NAMES, "no check stops another"
    for kind in ("problem", "note"):
        assert result[f"{kind}s"] == sum(row["status"] == kind for row in checks.values())
    assert all(bool(row["advice"]) == (row["status"] != "ok") for row in checks.values())
    assert status == (2 if result["problems"] else 0)
    return status, checks


def test_a_sound_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    status, checks = examine(capsys, "--device", "cpu")
    assert status == 0
    for name in ("python", "libraries", "numerics", "a step", "memory", "processes", "out", "disk space"):
        assert checks[name]["status"] == "ok", checks[name]
    assert torch.__version__ in checks["libraries"]["found"] and "torchvision" in checks["libraries"]["found"]
    assert not any(tmp_path.iterdir()), "nothing stays behind"


def test_a_line_a_check(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert main(["doctor", *SMALL, "--device", "cpu", "--out", "file"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(NAMES) + 1
    assert any(line.startswith("problem  out") and "file is a file; name another" in line for line in lines)
    assert lines[-1].startswith("1 to be mended before training can run")


def test_in_a_job_with_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "group").write_text("0::/job\n")
    (tmp_path / "groups" / "job").mkdir(parents=True)
    limits = {"cpu.max": "50000 100000", "memory.max": "5000000", "memory.current": "3000000", "memory.stat": ""}
    for name, value in limits.items():
        (tmp_path / "groups" / "job" / name).write_text(f"{value}\n")
    monkeypatch.setattr(machine, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    _, checks = examine(capsys, "--device", "cpu", "--out", str(tmp_path / "run"))
    assert "for 0.5 cores" in checks["threads"]["found"]
    assert "2 MB free on cpu" in checks["memory"]["found"] and checks["memory"]["status"] == "problem"


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that these versions are installed; None for none."""

    def pretended(name: str) -> str:
        found = versions.get(name, "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or importlib.metadata.version(name)

    monkeypatch.setattr(doctor_software, "version", pretended)


def break_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are as inexact as TensorFloat-32's, and an activation that overflows."""
    product = torch.Tensor.__matmul__
    coarse = {torch.float32: 1 + 1e-3, torch.float64: 1.0}
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a, b) * coarse[a.dtype])
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, **_: x * float("inf"))


def test_everything_is_wrong_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(doctor_machine, "free_memory", lambda _: 10**6)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with_versions(monkeypatch, timm="0.9.2", safetensors=None)
    break_arithmetic(monkeypatch)
    workers = ["--num_workers", "2", "--batch_size", "8", "--keep_checkpoints", "4"]
    status, checks = examine(capsys, "--out", "/proc/nothing", "--device", "cuda:77", "--data", "/nowhere", *workers)
    assert status == 2
    found = {name: row["found"] for name, row in checks.items() if row["status"] == "problem"}
    assert "efficient-mae needs timm>=1.0.20, here is 0.9.2" in found["libraries"]
    assert "safetensors>=0.5, which is not installed" in found["libraries"]
    assert checks["libraries"]["advice"].startswith("pip install --upgrade 'timm>=1.0.20' 'safetensors>=0.5'")
    assert "cuda:77" in found["device"]
    assert "float32 products are 1e-03 off, more than 1e-05" in found["numerics"]
    assert "nan" in found["a step"]
    assert checks["threads"]["status"] == "note"
    assert "OMP_NUM_THREADS=64" in checks["threads"]["found"]
    assert "1 MB free on cpu" in found["memory"]
    # 8 images of 16 x 16, for two workers' two batches each and the one in hand, with as much again.
    assert "20.5 kB" in found["shared memory"] and "--shm-size" in checks["shared memory"]["advice"]
    assert "WORLD_SIZE=2, but RANK, MASTER_ADDR, MASTER_PORT is not set" in found["processes"]
    assert "/proc cannot be written" in found["out"] and "--out" in checks["out"]["advice"]
    assert "4 checkpoints and the next one" in found["disk space"]
    assert "disk speed" in found
    assert "no such folder: '/nowhere'" in found["images"] and "no such folder" in found["waiting"]


def test_libraries_that_do_not_fit_each_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    asked = {"torchvision": ["numpy", "torch==2.11.0"], "efficient-mae": ["torch>=2.11", "torchvision>=0.26"]}
    monkeypatch.setattr(doctor_software, "requires", asked.get)
    with_versions(monkeypatch, torch="2.12.0+cu130")
    _, checks = examine(capsys)
    assert "torchvision needs torch==2.11.0, here is 2.12.0+cu130" in checks["libraries"]["found"]


def test_run_from_its_source(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with_versions(monkeypatch, **{"efficient-mae": None})
    status, checks = examine(capsys, "--device", "cpu")
    assert status == 0 and [checks[name]["status"] for name in ("python", "libraries", "extras")] == [
        "ok",
        "note",
        "ok",
    ]
    assert "run from its source" in checks["libraries"]["found"]


def test_libraries_that_are_half_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Their versions are right; a run would find out when it first uses them."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    _, checks = examine(capsys)
    assert checks["libraries"]["found"].startswith("tensorboard cannot be imported: ModuleNotFoundError: ")
    assert checks["libraries"]["advice"] == "pip install --force-reinstall tensorboard"


def test_extras_are_optional(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with_versions(monkeypatch, onnx=None)
    status, checks = examine(capsys, "--device", "cpu")
    assert status == 0 and checks["extras"]["status"] == "note"
    assert "without onnx: no emae export --format onnx" in checks["extras"]["found"]
    assert checks["extras"]["advice"].endswith("pip install 'efficient-mae[onnx]'")


TWO = dict(zip(PROCESSES, ("0", "0", "2", "2", "127.0.0.1", "29500")))


@pytest.mark.parametrize(
    ("changed", "threads", "cuda", "said"),
    [
        ({"LOCAL_RANK": "2"}, "many", None, "LOCAL_RANK=2; WORLD_SIZE=2; LOCAL_WORLD_SIZE=2"),
        ({"MASTER_PORT": "first"}, "0", "13.0", "MASTER_PORT='first': not a number"),
        ({"MASTER_ADDR": "no such.machine"}, "3.5", None, "MASTER_ADDR=no such.machine: no such machine"),
    ],
)
def test_an_environment_at_odds(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict,
    threads: str,
    cuda: str,
    said: str,
):
    """Processes that don't fit each other, no number of threads, and a driver that torch can't use."""
    for name, value in (TWO | changed | {"OMP_NUM_THREADS": threads}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor_software, "_driver", lambda: "NVRM 580")
    _, checks = examine(capsys)
    assert checks["processes"]["status"] == "problem" and said in checks["processes"]["found"]
    assert f"OMP_NUM_THREADS={threads}): not a number of threads" in checks["threads"]["found"]
    assert checks["device"]["status"] == "problem" and "NVRM 580" in checks["device"]["found"]
    assert ("built without CUDA" if cuda is None else "CUDA 13.0 cannot use it") in checks["device"]["found"]


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        (TWO, "ok", "process 0 of 2, 2 on this machine; 127.0.0.1:29500"),
        ({"SLURM_NTASKS": "8"}, "note", "one process, in a Slurm job of 8 tasks"),
    ],
)
def test_processes_of_torchrun_and_slurm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environment: dict, status: str, said: str
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = examine(capsys)[1]["processes"]
    assert (processes["status"], processes["found"]) == (status, said)


def test_a_check_that_fails_is_a_problem_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken(_: str) -> list[str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor_software, "requires", broken)
    _, checks = examine(capsys)
    assert "the check itself failed: RuntimeError: two lines" in checks["libraries"]["found"]


def test_images_and_waiting(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    data = write_images(tmp_path / "data", 20)
    (data / "004.jpg").write_text("no picture")
    _, checks = examine(capsys, "--data", str(data), "--batch_size", "64")
    images = checks["images"]
    assert images["status"] == "note" and "004.jpg" in images["found"]
    assert "19 of 20 that were read are whole" in images["found"]
    assert "a worker reads" in checks["waiting"]["found"]


def test_images_that_are_enlarged_or_made_coloured(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for size, channels, status, said in (
        (8, "3", "note", "grey and RGB, are enlarged 2.0 times to 16 x 16 and made RGB where they are grey"),
        (16, "1", "ok", "grey and RGB, are left in their size and made grey where they are RGB"),
    ):
        data = write_images(tmp_path / str(size), 6, size=(size, size))
        _, checks = examine(capsys, "--data", str(data), "--batch_size", "4", "--in_chans", channels)
        images = checks["images"]
        assert images["status"] == status and f"images of {size} x {size}, {said}" in images["found"]
        assert all((flag in images["advice"]) == (status == "note") for flag in ("--img_size", "--in_chans"))


def test_data_that_is_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    data = write_images(tmp_path / "data", 6)
    for file in data.iterdir():
        file.write_bytes(b"")
    _, checks = examine(capsys, "--data", str(data))
    assert checks["images"]["status"] == "problem" and "000.png: empty" in checks["images"]["found"]
    assert checks["waiting"]["status"] == "problem" and "no readable image" in checks["waiting"]["found"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch_size", "0"], "batch_size=0"),
        (["--num_workers", "-1"], "num_workers=-1"),
        (["--model", "vit"], "vit"),
    ],
)
def test_settings_that_cannot_work(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    assert main(["doctor", *arguments]) == 2
    assert said in capsys.readouterr().err
