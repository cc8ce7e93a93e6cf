"""`emae bench step`: real training steps of MAE, Efficient MAE and their peers, timed in turn within one run."""

import datetime
import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones.kernels.linear import linear
from efficient_mae.bench.contenders import Contender, How, own_contenders, seconds_of
from efficient_mae.bench.peaks import device_peak, host_peaks
from efficient_mae.bench.peers import peer_contenders
from efficient_mae.bench.step_result import MethodSpeed, StepResult, write_step
from efficient_mae.console import say
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.machine.memory import is_out_of_memory
from efficient_mae.engine.storage.run_directory import refusing_unwritable
from efficient_mae.errors import InputError
from efficient_mae.masking import MaskSettings, p2dist
from efficient_mae.ranges import Location, PositiveInt
from efficient_mae.tasks.pretrain_config import ModelChoice, build_model

# Rounds before the timed ones: caches fill, the allocator finds its size, kernels are chosen and compiled.
WARM_UP = 3
# Steps between two waits for the device: as in training, the host goes on while a GPU computes.
STEPS = {"cpu": 1, "cuda": 10}
# Side of the square matrices whose product is the yardstick; large enough for the device's best.
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
# A training step computes a forward pass and twice as much backward, at two FLOPs a multiply-accumulate.
FLOPS_A_MAC = 3 * 2


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig(ModelChoice):
    """Settings of `emae bench step`."""

    batch_size: PositiveInt | None = None
    """images of a step (null: 32 on a CPU, 256 on a GPU)"""
    rounds: PositiveInt = 5
    """times that every method is timed, in turn"""
    peers: bool | tuple[str, ...] = False
    """time other libraries' implementations too: all that are installed, or those whose names contain one of these,
    as ['CrossMAE 0.85']; a model and its optimiser's state are held for each"""
    memory: bool = True
    """measure peak memory too; on a CPU each method then takes two steps in a process of its own"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    compile: bool = False
    """compile the transformer blocks with torch.compile, of this project's methods alone"""
    cuda_graphs: bool = False
    """replay the encoder's blocks as CUDA graphs, of this project's methods alone"""
    grad_checkpointing: bool = False
    """recompute activations in the backward pass, of this project's methods alone"""
    out: Location | None = None
    """folder for step.json and step.png (null: none)"""


def bench_step(config: BenchStepConfig) -> StepResult:
    """Time training steps whose data lie on the device, and count and measure what they cost.

    Raises:
        InputError: a setting that cannot work, or a batch that does not fit.
    """
    if config.out is not None:  # told before what takes minutes
        with refusing_unwritable(Path(config.out)):
            Path(config.out).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=config.out).close()
    device = find_device(config.device)
    if config.cuda_graphs and (device.type != "cuda" or config.grad_checkpointing):
        raise InputError("cuda_graphs=true: needs a GPU, and grad_checkpointing=false")
    precision = resolve_precision(config.precision, device)
    batch_size = config.batch_size or (32 if device.type == "cpu" else 256)
    peaks: dict[str, float] = {}
    try:
        if device.type == "cpu":
            # Before this process fills the memory.
            peaks = host_peaks(partial(host_contender, config, batch_size, precision)) if config.memory else {}
        contenders = _contenders(config, batch_size, device, precision)
        seconds, matmul = _race(contenders, config.rounds, device, precision)
        if config.memory and device.type == "cuda" and not config.cuda_graphs:
            peaks = {contender.name: device_peak(contender, device) for contender in contenders}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"batch_size={batch_size}: does not fit the memory of {device}; lower it") from None
    first = contenders[0]
    rate = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    rows = []
    for contender in contenders:
        tflops = rate[contender.name] * contender.gmacs * FLOPS_A_MAC / 1e3
        counted = contender.gmacs == contender.gmacs
        rows.append(
            MethodSpeed(
                name=contender.name,
                images_per_second=round(rate[contender.name], 3),
                ratio=round(rate[contender.name] / rate[first.name], 4),
                gmacs=round(contender.gmacs, 3) if counted else None,
                gmac_ratio=round(first.gmacs / contender.gmacs, 4) if counted else None,
                tflops=round(tflops, 4) if counted else None,
                matmul_share=round(tflops / matmul, 4) if counted else None,
                peak_gigabytes=peaks.get(contender.name),
                seconds=[round(value, 4) for value in seconds[contender.name]],
            )
        )
    result = StepResult(
        date=datetime.date.today().isoformat(),
        machine=describe_machine(device),
        model=config.model,
        batch_size=batch_size,
        precision=precision,
        compile=config.compile,
        cuda_graphs=config.cuda_graphs,
        grad_checkpointing=config.grad_checkpointing,
        rounds=config.rounds,
        matmul_tflops=round(matmul, 4),
        **_mask_shares(config, batch_size, seconds),
        methods=rows,
    )
    if config.out is not None:
        write_step(Path(config.out), result)
    return result


def _contenders(
    config: BenchStepConfig, batch_size: int, device: torch.device, precision: str, number: int | None = None
) -> list[Contender]:
    """All of them, or the one of this number (none if there are fewer)."""
    with torch.device("meta"):
        model = build_model(config).config
    how = How(compile=config.compile, cuda_graphs=config.cuda_graphs, grad_checkpointing=config.grad_checkpointing)
    own, where = len(model.variants()), (batch_size, device, precision)
    found = own_contenders(model, *where, how, number)
    if config.peers and (number is None or number >= own):
        wanted = config.peers if isinstance(config.peers, tuple) else ("",)
        found += peer_contenders(model, *where, wanted, None if number is None else number - own)
    return found


def host_contender(config: BenchStepConfig, batch_size: int, precision: str, number: int) -> Contender | None:
    """The contender of a number, from 0, on the host, not compiled; None if there are fewer."""
    found = _contenders(
        replace(config, compile=False, cuda_graphs=False), batch_size, torch.device("cpu"), precision, number
    )
    return found[0] if found else None


def _race(
    contenders: list[Contender], rounds: int, device: torch.device, precision: str
) -> tuple[dict[str, list[float]], float]:
    """Seconds of every contender's step in each round, and the matrix product's TFLOP/s in the same rounds."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    products = []
    for number in range(WARM_UP + rounds):
        product = matmul_tflops(device, precision)
        # Every other round runs backwards, so that nobody always follows the same neighbour.
        for contender in contenders if number % 2 else reversed(contenders):
            steps = STEPS[device.type]
            taken = seconds_of(partial(_do, contender, steps), device) / steps
            if number >= WARM_UP:
                seconds[contender.name].append(taken)
        if number >= WARM_UP:
            products.append(product)
            say(f"round {number - WARM_UP + 1} of {rounds}")
    return seconds, statistics.median(products)


def _do(contender: Contender, steps: int) -> None:
    for _ in range(steps):
        contender()


def matmul_tflops(device: torch.device, precision: str) -> float:
    """Best of a few products of large square matrices of random numbers, computed as a model's linear maps are."""
    side, dtype = MATMUL_SIDE[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: linear(a, b, None), device) for _ in range(5)) / 1e12


def _mask_shares(config: BenchStepConfig, batch_size: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What one core takes for a batch's masks, beside the step that they are for."""
    with torch.device("meta"):
        model = build_model(config).config
    variants = model.variants()
    name = next((name for name, variant in variants.items() if variant == model), [*variants][-1])
    model, step_seconds = variants[name], statistics.median(seconds[name])
    planner = model.planner()
    noise = torch.rand(batch_size, math.prod(model.grid_size), generator=torch.Generator().manual_seed(0))
    mask = planner(noise).mask
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    host = torch.device("cpu")
    try:
        distance = None
        if isinstance(model, MaskSettings):
            measure = partial(p2dist, mask, model.patch_size, model.k)
            distance = statistics.median(seconds_of(measure, host) for _ in range(9))
        plan = statistics.median(seconds_of(lambda: planner(noise), host) for _ in range(9))
    finally:
        torch.set_num_threads(threads)
    return {
        "shares_of": name,
        "p2dist_share": None if distance is None else round(distance / step_seconds, 6),
        "masks_share": round(plan / step_seconds, 6),
    }
