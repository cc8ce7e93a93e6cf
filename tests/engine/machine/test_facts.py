"""What is found of the machine, and what becomes of memory that a step frees."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efficient_mae.engine.machine.facts import available_cores, describe_machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory and Linux' limits")

# How many addresses a freed tensor of a gigabyte leaves this process with; then how many of them are said to be used
# once it was told to give them back.
PROGRAM = """
import mmap, resource, sys
from pathlib import Path
import torch
from efficient_mae.engine.machine.facts import keep_freed_memory, release_freed_memory
def size():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (size() + (2 << 30), resource.RLIM_INFINITY))
keep_freed_memory()
before = size()
torch.ones(1 << 28).sum()
kept = size() - before
unused = release_freed_memory()
print(kept, size() - before - unused)
"""


def kept_addresses(case: str) -> list[int]:
    run = subprocess.run([sys.executable, "-c", PROGRAM, case], capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


@linux
def test_freed_memory_is_kept_for_the_next_step():
    kept, used = kept_addresses("unlimited")
    assert kept >= 1 << 30 and used < 1 << 28


@linux
def test_freed_memory_is_given_back_where_addresses_are_few():
    kept, used = kept_addresses("limited")
    assert kept < 1 << 28 and used < 1 << 28


@linux
def test_the_limit_of_addresses():
    program = """
import resource
from efficient_mae.engine.machine.facts import address_space_limit
resource.setrlimit(resource.RLIMIT_AS, (1 << 42, resource.RLIM_INFINITY))
print(address_space_limit())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 1 << 42


def test_describes_the_machine():
    found = describe_machine(torch.device("cpu"))
    assert found["device"] == "cpu" and found["torch"].startswith(torch.__version__.split("+")[0])
    assert 1 <= available_cores() == found["cores"]
    if Path("/proc/cpuinfo").exists():
        assert found["processor"] in Path("/proc/cpuinfo").read_text()
