"""The encoder's blocks as a CUDA graph: the same numbers."""

import copy
from types import SimpleNamespace

import pytest
import torch

import efficient_mae as emae
from efficient_mae.engine.machine.cuda_graphs import _Graph, _Replay, graph_blocks
from efficient_mae.engine.machine.parallel import compile_blocks
from efficient_mae.methods.mae import MaskedAutoencoder
from tests.processes import spawn

IMAGES = torch.linspace(-1, 1, 4 * 24 * 24).view(4, 1, 24, 24)


def small_model(decoder: str = "self") -> MaskedAutoencoder:
    torch.manual_seed(0)
    return emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=2, decoder_depth=2, decoder_embed_dim=32, beta=20.0,
        decoder=decoder,
    )  # fmt: skip


def test_what_is_not_trained_runs_as_it_is_and_a_copy_is_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("captured"))
    model = small_model()
    expected = model.backbone(IMAGES)
    graph_blocks(model.backbone, accumulates=False)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(IMAGES), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.eval().backbone(IMAGES), expected, rtol=0, atol=0)
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other.backbone.blocks[0].mlp.fc2.bias += 1
    changed = other.backbone(IMAGES)  # with a gradient, by its own blocks
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(copy.deepcopy(model.backbone)(IMAGES), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.backbone.forward_every(IMAGES)[-1], expected, rtol=0, atol=0)


class Doubler(_Graph):
    """A graph of a function that doubles, which needs no GPU."""

    def __init__(self, x: torch.Tensor):
        self.parameters, self.accumulates, self.passes = [], False, 0
        self.x, self.y, self.grad_y, self.gradients = (torch.zeros_like(x) for _ in range(4))
        self.gradients = (self.gradients,)
        self.forward = SimpleNamespace(replay=lambda: self.y.copy_(2 * self.x))
        self.backward = SimpleNamespace(replay=lambda: self.gradients[0].copy_(2 * self.grad_y))


def test_a_second_forward_pass_before_the_backward_pass_is_refused():
    """It has overwritten what that needs, and autograd would not know."""
    x = torch.ones(3, requires_grad=True)
    graph = Doubler(x)
    _Replay.apply(graph, x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2, 2]
    first, _ = _Replay.apply(graph, x), _Replay.apply(graph, 3 * x)
    with pytest.raises(RuntimeError, match="has overwritten the one before"):
        first.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("accumulates", [False, True], ids=["one micro-batch", "three"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_training_is_the_same_to_the_bit(decoder: str, compiled: bool, accumulates: bool):
    spawn(1, _compare, decoder, compiled, accumulates)


def _compare(_: int, decoder: str, compiled: bool, accumulates: bool) -> None:
    """Steps that begin with 4 images and with 3, some with a micro-batch of another number, and looks at features."""
    steps = [(4, 3, 4), (3, 4), (4, 4)] if accumulates else [(4,), (3,), (4,)]
    found = []
    for graphed in (False, True):
        torch._dynamo.reset()
        model = small_model(decoder).cuda()
        if compiled:
            compile_blocks(model)
        if graphed:
            graph_blocks(model.backbone, accumulates)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator, seen = torch.Generator().manual_seed(0), []
        for numbers in steps:
            for number in numbers:
                layout = model.plan(number, generator=generator)
                with torch.autocast("cuda", torch.bfloat16):
                    loss = model(IMAGES[:number].cuda(), layout).loss
                loss.backward()
                seen.append(loss.detach())
                del loss
            seen += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                seen.append(model.backbone(IMAGES.cuda()))
        found.append(seen)
    assert len(model.backbone.run_blocks._graphs) == 2
    for plain, graphed in zip(*found, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=0, atol=0)
