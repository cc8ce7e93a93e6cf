"""Linear maps by oneDNN against PyTorch's own; values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.backbones.kernels import linear as module
from efficient_mae.backbones.kernels.linear import Linear, linear, onednn_linear
from tests.operators import Operators

IN, OUT = 256, 512
# Images and tokens with which a product is large enough.
LARGE = (16, 128)
ONEDNN = onednn_linear._qualname

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def operators_of(function) -> list[str]:
    with Operators() as seen:
        function()
    return seen.names


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch):
    """As on a processor where its products are the faster ones."""
    monkeypatch.setattr(module, "_ONEDNN_IS_FASTER", True)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


INPUTS = {
    "rows": lambda: normal(37, IN),
    "images": lambda: normal(3, 20, IN),
    "transposed": lambda: normal(IN, 37).t(),
    "expanded": lambda: normal(1, IN).expand(5, IN),
    "sliced": lambda: normal(30, 2 * IN)[::2, ::2],
    "none": lambda: normal(0, IN),
}


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_is_the_linear_map(make, with_bias: bool):
    x, weight = make(), normal(OUT, IN)
    arguments = [x, weight, normal(OUT)] if with_bias else [x, weight]
    ours = onednn_linear(*arguments, *(() if with_bias else (None,)))
    doubles = [tensor.double() for tensor in arguments]
    theirs = F.linear(*doubles)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    seed = torch.randn_like(ours)
    found, expected = torch.autograd.grad(ours, arguments, seed), torch.autograd.grad(theirs, doubles, seed.double())
    for mine, their in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), their, rtol=1e-5, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("frozen", range(3))
def test_computes_no_gradient_that_nobody_wants(frozen: int):
    arguments = [normal(37, IN), normal(OUT, IN), normal(OUT)]
    arguments[frozen].requires_grad_(False)
    onednn_linear(*arguments).sum().backward()
    assert [argument.grad is None for argument in arguments] == [index == frozen for index in range(3)]


@needs_onednn
def test_large_float32_products_are_onednns(onednn):
    layer, x = Linear(IN, OUT), normal(*LARGE, IN)
    names = operators_of(lambda: layer(x).sum().backward())
    assert names.count(ONEDNN) == 2  # forward, and the gradient of x
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None


@needs_onednn
def test_its_operations_are_counted():
    weight, bias, x = normal(OUT, IN), normal(OUT), normal(*LARGE, IN)
    counts = []
    for function in (F.linear, onednn_linear):
        with FlopCounterMode(display=False) as counter:
            function(x, weight, bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@needs_onednn
def test_others_are_pytorchs(onednn):
    weight, bias, x = normal(OUT, IN), normal(OUT), normal(*LARGE, IN)
    other_types = ([t.to(kind) for t in (x, weight, bias)] for kind in (torch.bfloat16, torch.float64))
    for arguments in ([x[:1, :9], weight, bias], *other_types):
        assert ONEDNN not in operators_of(lambda arguments=arguments: linear(*arguments))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_without_onednn_all_are_pytorchs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_ONEDNN_IS_FASTER", False)
    arguments = [normal(*LARGE, IN), normal(OUT, IN), normal(OUT)]
    assert ONEDNN not in operators_of(lambda: linear(*arguments))


@needs_onednn
def test_compiled_code_asks_for_no_size_within_autocast(onednn):
    """Small or large: there it is PyTorch's, and one graph is enough."""
    layer, graphs = Linear(IN, OUT), []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=keep)
    with torch.autocast("cpu", torch.bfloat16):
        for images in (2, LARGE[0]):
            x = normal(images, *LARGE[1:], IN)
            torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1


@needs_onednn
def test_compiled_code_takes_it_too(onednn):
    layer, x = Linear(IN, OUT), normal(*LARGE, IN)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph.code)
        return graph

    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=keep)(x), layer(x))
    assert [ONEDNN.replace("::", ".") in code for code in graphs] == [True]
    torch.library.opcheck(onednn_linear, (normal(37, IN), layer.weight, layer.bias))
