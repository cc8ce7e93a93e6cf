"""What torchrun and Slurm say of a process."""

import os

import pytest

from efficient_mae.engine.machine.launcher import as_torchrun_says, place, slurm_environment
from efficient_mae.errors import InputError

STEP = {
    "SLURM_JOB_ID": "31007", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu[003,005-009]", "gpu003"),
        ("gpu12,gpu[20-23]", "gpu12"),
        ("r[1-2]n5", "r1n5"),
        ("node-a,node-b", "node-a"),
    ],
)
def test_srun_says_what_torchrun_would(nodes: str, first: str):
    found = slurm_environment(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert found == {
        "RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": first, "MASTER_PORT": "16007",
    }  # fmt: skip


def test_an_address_that_is_given_stays():
    found = slurm_environment(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_a_batch_script_is_one_process():
    job = {"SLURM_JOB_ID": "31007", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[07-08]"}
    assert slurm_environment(job) == slurm_environment(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("given", "rank", "local_rank", "world_size"),
    [
        ({}, 0, 0, 1),
        (TORCHRUN, 5, 1, 8),
        (STEP, 11, 3, 16),
        (STEP | TORCHRUN, 5, 1, 8),  # srun torchrun
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 0, 0, 1),
    ],
)
def test_the_place_of_a_process(
    given: dict[str, str], rank: int, local_rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch
):
    for name in TORCHRUN | STEP:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert place() == (rank, local_rank, world_size)
    with as_torchrun_says():
        named = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world_size}
        assert not given or world_size == 1 or {name: int(os.environ[name]) for name in named} == named
    assert os.environ == before


def test_nodes_that_are_not_understood():
    with pytest.raises(InputError, match="not understood; start with srun torchrun"):
        slurm_environment(STEP | {"SLURM_STEP_NODELIST": "[1-2]"})
