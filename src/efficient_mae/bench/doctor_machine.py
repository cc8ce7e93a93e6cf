"""Checks of `emae doctor`: cores, memory, the system's limits, and the other processes."""

import os
import shutil
import socket
import sys
from pathlib import Path

import torch

from efficient_mae.bench.doctor_finding import Finding, Plan, in_bytes, note, ok, problem
from efficient_mae.engine.machine.facts import available_cores, control_groups
from efficient_mae.engine.machine.free_memory import free_memory
from efficient_mae.engine.machine.launcher import launch_environment

# Batches that a worker keeps ready, PyTorch's and ours.
_PREFETCH = 2
# Open files that the workers' batches, the data and PyTorch itself stay below.
_FILES = 1024
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_threads(plan: Plan) -> Finding:
    """Threads that compute, beside the cores that there are for them."""
    cores, threads, asked = _usable_cores(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    here = int(launch_environment().get("LOCAL_WORLD_SIZE", "1"))
    found = f"{threads} threads for {cores:g} cores"
    if asked is not None:
        found += f" (OMP_NUM_THREADS={asked})"
        if not asked.isdecimal() or int(asked) < 1:
            return note(f"{found}: not a number of threads", f"unset it, or export OMP_NUM_THREADS={int(cores)}")
    best = max(1, int(cores / here))
    if max(threads, int(asked or 0)) * here > max(1, cores):
        return note(f"{found} and {here} processes: they wait for each other", f"export OMP_NUM_THREADS={best}")
    if plan.device.type == "cpu" and threads < best:
        return note(f"{found}: the others are idle", f"export OMP_NUM_THREADS={best}")
    return ok(found)


def check_memory(plan: Plan) -> Finding:
    """Free memory of the device, beside the model's weights, gradients and optimiser state."""
    free = free_memory(plan.device)
    need = plan.state_bytes
    if free is None:
        return ok(f"the model's state takes {in_bytes(need)}; this system does not say what is free")
    found = f"{in_bytes(free)} free on {plan.device}; the model's weights, gradients and AdamW state take "
    found += in_bytes(need)
    if need > free:
        return problem(found, "take a smaller model, or several GPUs with --parallel fsdp")
    if need > 0.7 * free:
        return note(found, "little is left for images: expect a high --accum_iter, and --grad_checkpointing true")
    return ok(found)


def check_shared_memory(plan: Plan) -> Finding:
    """Room for the batches that workers hand over."""
    folder = Path("/dev/shm")  # where Linux keeps what processes share
    channels, height, width = plan.img_shape
    # A batch of masks takes less than its images; one batch is in the step's hands.
    value = 1 if plan.images.value_range is None else 4
    need = 2 * value * plan.batch_size * channels * height * width * (plan.num_workers * _PREFETCH + 1)
    if plan.num_workers == 0 or not folder.is_dir():
        return ok("not used")
    free = shutil.disk_usage(folder).free
    found = f"{in_bytes(free)} free in {folder}; {plan.num_workers} workers use up to {in_bytes(need)}"
    if free < need:
        more = f"{need / 2**30 + 1:.0f}g"
        return problem(found, f"docker run --shm-size={more} (or --ipc=host), or --num_workers 0")
    return ok(found)


def check_open_files(_: Plan) -> Finding:
    """The limit on open files; each tensor that a worker hands over is one."""
    if sys.platform == "win32":
        return ok("no limit")
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return ok("no limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,}")
    most = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    return note(f"up to {soft:,} (could be {most}): many workers may want more", f"ulimit -n {_FILES} or more")


def check_processes(_: Plan) -> Finding:
    """What torchrun or Slurm set: whether it is complete, consistent, and names a machine that can be found."""
    given = launch_environment()
    if "WORLD_SIZE" not in given:
        if int(given.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" not in given:
            return note(
                f"one process, in a Slurm job of {given['SLURM_NTASKS']} tasks",
                "start with srun emae ... or srun torchrun ...",
            )
        return ok("one process")
    start = "start with torchrun, which sets them all, or unset WORLD_SIZE"
    defaults = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    values = {name: given.get(name, defaults.get(name)) for name in _VARIABLES}
    if values["WORLD_SIZE"] == "1":
        return ok("one process (WORLD_SIZE=1)")
    if missing := [name for name, value in values.items() if not value]:
        return problem(f"WORLD_SIZE={values['WORLD_SIZE']}, but {', '.join(missing)} is not set", start)
    numbers = {name: str(value) for name, value in values.items() if name != "MASTER_ADDR"}
    if wrong := [f"{name}={value!r}" for name, value in numbers.items() if not value.isdecimal()]:
        return problem(f"{', '.join(wrong)}: not a number", start)
    rank, local_rank, world, local_world, port = (int(numbers[name]) for name in _VARIABLES if name != "MASTER_ADDR")
    if not (rank < world and local_rank < local_world <= world and 0 < port < 65536):
        return problem("; ".join(f"{name}={value}" for name, value in numbers.items()) + ": at odds", start)
    address = str(values["MASTER_ADDR"])
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        return problem(
            f"MASTER_ADDR={address}: no such machine ({error.strerror})", "give the first machine's name or address"
        )
    return ok(f"process {rank} of {world}, {local_world} on this machine; {address}:{port}")


MACHINE_CHECKS = {
    "threads": check_threads,
    "memory": check_memory,
    "shared memory": check_shared_memory,
    "open files": check_open_files,
    "processes": check_processes,
}


def _usable_cores() -> float:
    """Cores that this process may run on, or, in a container, the time of how many it gets."""
    cores: float = available_cores()
    for (said,) in control_groups("cpu.max"):
        quota, period = said.split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores
