"""A whole step, backward too, by PyTorch's packed attention: on tensors without numbers, for it runs on GPUs alone.

They are a CPU's, since a backward pass on a GPU's would ask the driver for its stream.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import efficient_mae as emae
from efficient_mae.backbones.kernels import attention
from efficient_mae.engine.machine.parallel import compile_blocks
from efficient_mae.engine.machine.step_memory import hollow
from tests.engine.test_fake_cuda import Watch
from tests.processes import spawn

CPU = torch.device("cpu")
# What a step of 64 images launches but for its optimiser's, views apart, and the GB that it reads and writes.
BUDGETS = {"base": (1575, 25.75), "large": (2487, 41.72)}


def takes(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def step(model: nn.Module, layout: Any, images: int) -> list[str]:
    """Do a step without its optimiser; the names of parameters that get no gradient, or one of another shape."""
    config: Any = model.config
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.empty(images, config.in_chans, *config.img_size), layout).loss
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return [
        name
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
        if gradient is None or gradient.shape != parameter.shape or gradient.dtype != parameter.dtype
    ]


def small_model(mask_ratio: float = 0.85) -> nn.Module:
    with torch.device("meta"):
        return emae.create_model("mae_vit_tiny_patch16", depth=2, decoder_depth=3, img_size=96, mask_ratio=mask_ratio)


def layout_of(model: Any, images: int, unit: int | None = None, seed: int = 0) -> Any:
    rows, columns = model.config.grid_size
    noise = torch.rand(images, rows * columns, generator=torch.Generator().manual_seed(seed))
    return model.config.planner(unit)(noise)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("parts", [1, 2], ids=["at once", "in parts"])
def test_every_parameter_gets_its_gradient(parts: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_has_packed_kernel", takes)
    model = small_model()
    layout = layout_of(model, 8, 8 // parts)
    assert len(layout.parts) == parts
    with FakeTensorMode(allow_non_fake_inputs=True), Watch(CPU) as watch:
        fake: Any = hollow(model, CPU).train()
        fake.set_grad_checkpointing(checkpointing)
        assert step(fake, layout, 8) == []
    # Each of the decoder's blocks once a part, forward and backward, and once more where it is recomputed.
    assert watch.packed == 3 * parts * (1 + checkpointing) and watch.packed_backward == 3 * parts


def test_compiled_ahead_of_time_it_is_compiled_once():
    """By Dynamo and AOTAutograd, over batches of other lengths, at two ratios: no graph anew, and none broken."""
    spawn(1, _compile)


def _compile(_: int) -> None:
    attention._has_packed_kernel = takes
    torch.compile = partial(torch.compile, backend="aot_eager")  # all but the code that it would write
    counted = torch._dynamo.utils.counters
    for ratio in (0.75, 0.95):
        torch._dynamo.reset()
        counted.clear()
        model = small_model(ratio)
        layouts = [layout_of(model, 8, seed=seed) for seed in range(4)]
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = hollow(model, CPU).train()
            compile_blocks(fake)
            assert [step(fake, layout, 8) for layout in layouts] == [[]] * 4
        assert counted["stats"]["unique_graphs"] == 4 and not counted["graph_break"] and not counted["recompiles"]


@pytest.mark.parametrize("size", BUDGETS)
def test_what_a_step_launches_and_moves(size: str, monkeypatch: pytest.MonkeyPatch):
    """Whoever changes them by 2 % should know why. Dense attention counts as a CPU's."""
    monkeypatch.setattr(attention, "_has_packed_kernel", takes)
    with torch.device("meta"):
        model = emae.create_model(f"mae_vit_{size}_patch16")
    layout = layout_of(model, 64)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch(CPU) as watch:
        assert step(hollow(model, CPU).train(), layout, 64) == []
    launches, gigabytes = BUDGETS[size]
    assert watch.launches == pytest.approx(launches, rel=0.02)
    assert watch.num_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
