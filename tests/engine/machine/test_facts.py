"""What is found of the machine, and what becomes of memory that a step frees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efficient_mae.engine.machine.facts import available_cores, describe_machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory and Linux' limits")

# How many addresses a freed tensor of a gigabyte leaves this process with; then how many of them are said to be used
# once it was told to give them back. Before these, the limit of addresses, and what is found of it.
PROGRAM = """
import json, mmap, resource, sys
from pathlib import Path
import torch
from efficient_mae.engine.machine.facts import address_space_limit, keep_freed_memory, release_freed_memory
def size():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
limit = None
if sys.argv[1] == "limited":
    limit = size() + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
keep_freed_memory()
before = size()
torch.ones(1 << 28).sum()
kept = size() - before
unused = release_freed_memory()
print(json.dumps([limit, address_space_limit(), kept, size() - before - unused]))
"""


def addresses(case: str) -> list[int]:
    run = subprocess.run([sys.executable, "-c", PROGRAM, case], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@linux
def test_freed_memory_is_kept_for_the_next_step():
    *_, kept, used = addresses("unlimited")
    assert kept >= 1 << 30 and used < 1 << 28


@linux
def test_freed_memory_is_given_back_where_addresses_are_few():
    limit, found, kept, used = addresses("limited")
    assert found == limit and kept < 1 << 28 and used < 1 << 28


def test_describes_the_machine():
    found = describe_machine(torch.device("cpu"))
    assert found["device"] == "cpu" and found["torch"].startswith(torch.__version__.split("+")[0])
    assert 1 <= available_cores() == found["cores"]
    if Path("/proc/cpuinfo").exists():
        assert found["processor"] in Path("/proc/cpuinfo").read_text()
