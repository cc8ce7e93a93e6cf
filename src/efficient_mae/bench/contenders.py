"""What `emae bench step` times: real training steps of this project's methods."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.bench.flops import count_gmacs
from efficient_mae.data import TrainBatch, default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.loop import Objective, Step
from efficient_mae.engine.machine.cuda_graphs import graph_blocks
from efficient_mae.engine.machine.distributed import ALONE, autocast
from efficient_mae.engine.machine.parallel import compile_blocks
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.errors import InputError
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods import METHODS, Method, MethodConfig
from efficient_mae.tasks.pretrain import MethodObjective

# Batches of a contender: their packed lengths differ, as they do in training.
BATCHES = 3
# Steps that tell a model's speed, after one that warms up.
TIMED_STEPS = 3


@dataclass
class Contender:
    """An implementation and a method, ready to do training steps.

    Attributes:
        name: how tables call it.
        gmacs: multiply-accumulates of one image's forward pass, 1e9.
        step: the engine's training step.
        batches: which it does in turn, on their device.
    """

    name: str
    gmacs: float
    step: Step
    batches: list[TrainBatch]
    _steps: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self) -> None:
        """One training step: forward, backward, optimiser."""
        index = next(self._steps)
        self.step(index, [self.batches[index % len(self.batches)]])

    @property
    def counted_bytes(self) -> int:
        """What a step takes beside what stays, counted; 0 of other implementations."""
        if not isinstance(self.step.objective, MethodObjective):
            return 0

        def loss(model: nn.Module, batch: TrainBatch) -> Tensor:
            with autocast(self.step.precision, batch.images.device):
                return self.step.objective.weighted_sum(model, batch)

        batch = self.batches[0]
        return max(count_passes(loss, self.step.model, batch, batch.images.device))

    @property
    def static_bytes(self) -> int:
        """What stays between two steps: weights and the optimiser's state."""
        optimizer = self.step.optimizer
        state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
        held = [*self.step.model.parameters(), *self.step.model.buffers(), *state]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


@dataclass(frozen=True, kw_only=True)
class How:
    """How this project's models are run.

    Attributes:
        compile: their blocks.
        cuda_graphs: replay the encoder's blocks.
        grad_checkpointing: recompute activations.
    """

    compile: bool = False
    cuda_graphs: bool = False
    grad_checkpointing: bool = False


def own_contenders(
    config: MethodConfig, batch_size: int, device: torch.device, precision: str, how: How, number: int | None = None
) -> list[Contender]:
    """The variants of a method, or the one of a number (none if there are fewer).

    Those whose weights have the same names and shapes share a model and optimiser: they differ in their masks alone.

    Raises:
        InputError: what cannot be a CUDA graph is to be one.
    """
    variants, steps, found = [*config.variants().items()], dict[Any, Step](), list[Contender]()
    for name, variant in variants if number is None else variants[number : number + 1]:
        with torch.device("meta"):
            shapes = tuple((key, tensor.shape) for key, tensor in METHODS[variant.method](variant).named_parameters())
        if shapes not in steps:
            steps[shapes] = _own_step(variant, device, precision, how)
        found.append(Contender(name, count_gmacs(variant), steps[shapes], _batches(variant, batch_size, device)))
    return found


def _own_step(config: MethodConfig, device: torch.device, precision: str, how: How) -> Step:
    with torch_seeded(0):
        model = METHODS[config.method](config).to(device).train()
    model.set_grad_checkpointing(how.grad_checkpointing)
    if how.compile:
        compile_blocks(model)
    if how.cuda_graphs and config.draws:
        raise InputError("cuda_graphs=true: a CUDA graph has no drop path; give drop_path=0 or cuda_graphs=false")
    if how.cuda_graphs:
        graph_blocks(model.backbone, accumulates=False)
    return training_step(model, MethodObjective(image_statistics(config)), device, precision)


def model_step(model: Method, batch_size: int, device: torch.device, precision: str) -> tuple[Step, list[TrainBatch]]:
    """The engine's training step of a model as it is, and batches for it that lie on the device."""
    step = training_step(model.to(device).train(), MethodObjective(image_statistics(model.config)), device, precision)
    return step, _batches(model.config, batch_size, device)


def step_images_per_second(model: Method, batch_size: int, device: torch.device, precision: str) -> float:
    """Speed of a training step whose data lie on the device: forward, backward, optimiser."""
    step, batches = model_step(model, batch_size, device, precision)
    contender = Contender("", float("nan"), step, batches)
    contender()
    return batch_size / statistics.median(seconds_of(contender, device) for _ in range(TIMED_STEPS))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """How long a function takes, with all that it leaves to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def training_step(model: nn.Module, objective: Objective, device: torch.device, precision: str) -> Step:
    return Step(
        model,
        build_adamw(model, weight_decay=0.05),
        objective,
        replace(ALONE, device=device),
        learning_rate=lambda _: 1e-4,
        precision=precision,
        after=model.after_step if isinstance(model, Method) else lambda: None,
    )


def _batches(config: MethodConfig, batch_size: int, device: torch.device) -> list[TrainBatch]:
    """Of the same images, with several draws of this method's masks."""
    images = images_of(config, batch_size)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(BATCHES, batch_size, config.grid_size[0] * config.grid_size[1], generator=generator)
    planner = config.planner(config.unit(device))
    layouts = [planner(part) for part in noise]
    return [TrainBatch(images, torch.arange(batch_size), None, [], Flat.of(layout)).to(device) for layout in layouts]


def images_of(config: MethodConfig, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, config.in_chans, *config.img_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def image_statistics(config: MethodConfig) -> ImageStatistics:
    return ImageStatistics(*default_mean_std(config.in_chans))
