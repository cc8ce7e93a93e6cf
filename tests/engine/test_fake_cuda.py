"""The step on a GPU that isn't there: on tensors without numbers, what would wait for it or lies elsewhere fails."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import efficient_mae as emae
from efficient_mae.bench.contenders import image_statistics, images_of
from efficient_mae.data import TrainBatch
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.engine.optim import build_adamw, step_unless
from efficient_mae.flat import Flat
from efficient_mae.tasks.pretrain import MethodObjective

CUDA = torch.device("cuda:0")
IMAGES = 8
METHODS = {
    "MAE": {"beta": None, "gamma": 0.0, "mask_ratio": 0.75},
    "Efficient MAE": {},
    "plain pixels": {"norm_pix_loss": False, "mask_ratio": 0.95},
    "curriculum": {"schedule": "curriculum"},
    "normalise": {"schedule": "normalise"},
    "one decoder block": {"decoder_depth": 1},
    "cross": {"decoder": "cross"},
    "farthest": {"targets": "farthest", "prediction_ratio": 0.5, "beta": None},
    "shuffled": {"shuffle": "difficulties"},
    "odd heads": {"decoder_embed_dim": 60, "decoder_num_heads": 5},
}


# What a forward pass of 64 images launches, views apart, and the GB that it reads and writes.
BUDGETS = {"base": (615, 10.0), "large": (1011, 17.37)}


class Watch(TorchDispatchMode):
    """Counts operations and the bytes that they move; fails at what PyTorch's packed kernel would refuse.

    Args:
        device: where that kernel is taken to run.

    Attributes:
        packed, packed_backward: calls of that kernel.
        launches: operations, views apart.
        num_bytes: that they read and write.
    """

    def __init__(self, device: torch.device = CUDA):
        super().__init__()
        self.device = device
        self.packed = self.packed_backward = self.launches = self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "varlen_attn_backward" in str(func):
            self.packed_backward += 1
        elif "varlen_attn" in str(func):
            self.packed += 1
            q, k, v, *lengths = args[:5]
            assert all(x.dtype == torch.bfloat16 and x.shape[-1] % 8 == 0 for x in (q, k, v))
            assert all(x.dtype == torch.int32 for x in lengths)
            assert all(x.device == self.device for x in (q, k, v, *lengths))
        result = func(*args, **(kwargs or {}))
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not view and func is not torch.ops.aten._unsafe_view.default and func.namespace != "prim":
            self.launches += 1
            leaves = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.num_bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        return result


@contextmanager
def bf16() -> Iterator[None]:
    """Autocast of CUDA's, which torch.autocast would not switch on where there is none."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch chooses a packed kernel by what the GPU is capable of."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


CASES = [(settings, 2, "bf16") for settings in METHODS.values()] + [({}, 1, "bf16"), ({}, 2, "fp32")]


@pytest.mark.parametrize(
    ("settings", "parts", "precision"), CASES, ids=[*METHODS, "Efficient MAE at once", "Efficient MAE in float32"]
)
@pytest.mark.usefixtures("hopper")
def test_forward_pass_and_loss(settings: dict[str, Any], parts: int, precision: str):
    with torch.device("meta"):
        model = emae.create_model("mae_vit_tiny_patch16", depth=1, img_size=96, **({"decoder_depth": 3} | settings))
    config = model.config
    noise = torch.rand(IMAGES, 36, generator=torch.Generator().manual_seed(0))
    layout = config.planner(IMAGES // parts)(noise)
    assert len(layout.parts) == parts
    batch = TrainBatch(images_of(config, IMAGES), torch.arange(IMAGES), None, [], Flat.of(layout))
    objective = MethodObjective(image_statistics(config))
    # A backward pass would ask the driver for its stream.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fake = hollow(model, CUDA).train()
        with Watch() as watch, bf16() if precision == "bf16" else nullcontext():
            loss = objective.weighted_sum(fake, batch.to(CUDA))
        assert loss.device == CUDA and loss.shape == ()
        with pytest.raises(DataDependentOutputException):
            loss.item()
    takes = precision == "bf16" and config.decoder_embed_dim // config.decoder_num_heads % 8 == 0
    assert watch.packed == (parts * config.decoder_depth if takes else 0)


@pytest.mark.parametrize("size", BUDGETS)
@pytest.mark.usefixtures("hopper")
def test_what_a_forward_pass_launches_and_moves(size: str):
    """Whoever changes them by 2 % should know why. Dense attention counts as its plain form: there is no driver."""
    with torch.device("meta"):
        model = emae.create_model(f"mae_vit_{size}_patch16")
    layout = model.config.planner()(torch.rand(64, 196, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fake, layout = hollow(model, CUDA).train(), layout.to(CUDA)
        images = torch.empty(64, 3, 224, 224, device=CUDA)
        with Watch() as watch, bf16():
            fake(images, layout)
    launches, gigabytes = BUDGETS[size]
    assert watch.launches == pytest.approx(launches, rel=0.02)
    assert watch.num_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_norm_clipping_and_the_optimiser():
    with torch.device("meta"):
        model = emae.create_model("mae_vit_tiny_patch16", depth=1, decoder_depth=1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = hollow(model, CUDA)
        for parameter in fake.parameters():
            parameter.grad = torch.empty_like(parameter)
        gradients = [p.grad for p in fake.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(fake.parameters(), 1.0, norm)
        optimizer = build_adamw(fake, weight_decay=0.05)
        step_unless(norm.isfinite().logical_not(), optimizer)
        state = [value for values in optimizer.state.values() for value in values.values()]
    assert (
        state and norm.device == CUDA and all(isinstance(value, Tensor) and value.device == CUDA for value in state)
    )
