"""What a step takes, counted on tensors that hold no numbers: against counts by hand, and against itself in parts."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import efficient_mae as emae
from efficient_mae.data import normalize
from efficient_mae.engine.machine.step_memory import count_passes, hollow
from efficient_mae.methods.mae import MaskLayout, MaskPlanner, MaskSettings

CPU = torch.device("cpu")


def test_two_layers_counted_by_hand():
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 32))

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch.to(torch.float32)).sum()

    forward, backward = count_passes(loss, net, torch.zeros(100, 64, dtype=torch.float64), CPU)
    # The input, what goes into GELU and what comes out of it, the output, and the sum.
    assert forward == 4 * (100 * (64 + 256 + 256 + 32) + 1)
    # When GELU's gradient is made, the last layer's input and output are gone or going: of its gradient, an expanded
    # one, there is one number; then come the gradients of GELU's output and of its input.
    assert 4 * 100 * (64 + 256 + 256 + 256) <= backward <= 4 * 100 * (64 + 256 + 256 + 256 + 32 + 1)


def loss_of(model: nn.Module, layout: MaskLayout) -> Tensor:
    return model(torch.zeros(len(layout.mask), 3, 32, 32), layout).loss


def layout(images: int, part_size: int) -> MaskLayout:
    noise = torch.rand(images, 64, generator=torch.Generator().manual_seed(0))
    return MaskPlanner((8, 8), 4, MaskSettings(mask_ratio=0.75), part_size)(noise)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.device("meta"):
        return emae.create_model("mae_vit_tiny_patch4", img_size=32, depth=2, decoder_depth=2)


def test_memory_grows_evenly_from_two_parts_on(model: nn.Module):
    few, more, many = (count_passes(loss_of, model, layout(images, 4), CPU) for images in (8, 12, 28))
    for one, two, five in zip(few, more, many, strict=True):
        # Parts differ a little: their images have other numbers of targets.
        assert one + 5 * (two - one) == pytest.approx(five, rel=0.03)


def test_parts_take_less_than_the_whole(model: nn.Module):
    whole, parts = (max(count_passes(loss_of, model, layout(28, size), CPU)) for size in (28, 4))
    assert parts < 0.7 * whole


def test_nothing_is_left_of_it():
    """Neither random numbers nor weights nor what is kept from one call to the next."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout())
    before = [parameter.clone() for parameter in net.parameters()]
    states = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return net(normalize(batch, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))).sum()

    images = torch.full((2, 3, 2, 2), 255, dtype=torch.uint8)
    count_passes(loss, net, images, CPU)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    for ours, theirs in zip(net.parameters(), before, strict=True):
        assert torch.equal(ours, theirs) and ours.grad is None
    expected = (1 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.4, 0.5, 0.6])
    torch.testing.assert_close(normalize(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))[0, :, 0, 0], expected)


def test_a_hollow_copy_shares_nothing_with_its_model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].weight.requires_grad_(False)
    copied = hollow(net, torch.device("meta"))
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in net.parameters()]
    assert {t.device.type for t in [*copied.parameters(), *copied.buffers()]} == {"meta"}
    assert {t.device.type for t in [*net.parameters(), *net.buffers()]} == {"cpu"}
