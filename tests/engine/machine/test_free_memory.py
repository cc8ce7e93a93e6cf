"""What is free, by the machine and by what limits a process."""

import sys
from pathlib import Path

import pytest
import torch

from efficient_mae.engine.machine import facts as machine
from efficient_mae.engine.machine.facts import control_groups
from efficient_mae.engine.machine.free_memory import free_memory

MIB = 1 << 20

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups as those of a batch system's job: the process' own, and the job's around it."""
    (tmp_path / "group").write_text("0::/job_7/step_0\n")
    root = tmp_path / "groups"
    (root / "job_7" / "step_0").mkdir(parents=True)
    monkeypatch.setattr(machine, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(machine, "_GROUPS", root)
    return root


def limit(group: Path, most: str, used: int, read: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - read}\ninactive_file {read}\nactive_file 0\n")


@linux
def test_a_jobs_memory_is_what_is_free(groups: Path):
    limit(groups / "job_7" / "step_0", "max", 60 * MIB, 10 * MIB)
    limit(groups / "job_7", str(200 * MIB), 60 * MIB, 10 * MIB)
    assert free_memory(torch.device("cpu")) == 150 * MIB
    limit(groups / "job_7", str(200 * MIB), 300 * MIB, 10 * MIB)
    assert free_memory(torch.device("cpu")) == 0


@linux
def test_the_memory_of_a_job_under_control_groups_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "group").write_text("5:cpu,cpuacct:/job_7\n4:memory:/job_7\n0::/\n")
    root = tmp_path / "groups"
    job = root / "memory" / "job_7"
    job.mkdir(parents=True)
    for group, most in ((job, 200 * MIB), (root / "memory", 9223372036854771712)):
        (group / "memory.limit_in_bytes").write_text(f"{most}\n")
        (group / "memory.usage_in_bytes").write_text(f"{60 * MIB}\n")
        (group / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {10 * MIB}\n")
    monkeypatch.setattr(machine, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(machine, "_GROUPS", root)
    assert free_memory(torch.device("cpu")) == 150 * MIB


@linux
def test_without_limits_the_machines_memory_is_free(groups: Path):
    limit(groups / "job_7", "max", 60 * MIB, 10 * MIB)
    free = free_memory(torch.device("cpu"))
    assert free is not None and free > 200 * MIB


def test_groups_that_have_no_such_file(groups: Path):
    (groups / "job_7" / "cpu.max").write_text("150000 100000\n")
    assert list(control_groups("cpu.max")) == [("150000 100000",)]
    assert list(control_groups("cpu.max", "cpu.stat")) == []
