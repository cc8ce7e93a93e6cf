"""The encoder's blocks as a CUDA graph: a step hands the device one piece of work, and no longer waits for the host.

A training step of small pieces is over before the host has launched them. The encoder's are the same in every step,
for every image keeps as many patches. Captured once, they are replayed, forward and backward; nothing is computed
otherwise.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from efficient_mae.backbones import Backbone, VisionTransformer
from efficient_mae.errors import InputError

# Passes before one is captured: code is compiled, kernels are chosen, libraries take their room.
_WARM_UP = 3


def graph_blocks(backbone: Backbone, accumulates: bool) -> None:
    """Run the blocks as a CUDA graph wherever they are trained, from now on.

    There is a graph for each shape of tokens with which a step begins; what is of another shape within a step runs as
    it is. Parameters stay where they are for ever after: they may be changed, not replaced. Every forward pass is
    followed by its backward pass before the next, or the next one's raises RuntimeError.

    Args:
        backbone: on a GPU, compiled or not, whole; nothing in its blocks is random.
        accumulates: whether a backward pass may add to the gradients of one before.

    Raises:
        InputError: the blocks aren't this package's.
    """
    if not isinstance(backbone, VisionTransformer):
        raise InputError(f"cuda_graphs=true: a {backbone.family} encoder's blocks are timm's; cuda_graphs=false")
    backbone.run_blocks = _GraphedBlocks(backbone, accumulates)


class _GraphedBlocks:
    def __init__(self, backbone: VisionTransformer, accumulates: bool):
        self._backbone, self._accumulates = backbone, accumulates
        self._plain = backbone.run_blocks
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()  # no two are between their forward and their backward pass
        self._stream: torch.cuda.Stream | None = None  # of all that share the pool

    def __call__(self, x: Tensor, every: bool = False) -> Tensor:
        plain = partial(self._plain, every=every)
        if not (torch.is_grad_enabled() and self._backbone.training and x.requires_grad):
            return plain(x)
        key = (x.shape, x.dtype, every, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        if key not in self._graphs:
            parameters = [p for p in self._backbone.blocks.parameters() if p.requires_grad]
            if any(p.grad is not None for p in parameters):  # they belong to the stream that training runs on
                return plain(x)
            self._stream = self._stream or torch.cuda.Stream(x.device)
            with torch.cuda.device(x.device):
                shape = (len(self._backbone.blocks), *x.shape) if every else x.shape
                settings = parameters, self._pool, self._stream, self._accumulates
                self._graphs[key] = _Graph(plain, x, x.new_zeros(shape), *settings)
        graph = self._graphs[key]
        return _Replay.apply(graph, x, *graph.parameters)  # pyright: ignore[reportReturnType]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the backbone has its own plain blocks."""
        copied = copy.deepcopy(self._backbone, memo)
        return type(copied).run_blocks.__get__(copied)


class _Graph:
    """A forward and a backward pass for tokens of one shape, and the memory in which they happen."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        grad_y: Tensor,
        parameters: list[nn.Parameter],
        pool: Any,
        stream: torch.cuda.Stream,
        accumulates: bool,
    ):
        self.parameters, self.accumulates, self.passes = parameters, accumulates, 0
        self.x = x.detach().clone().requires_grad_()
        self.grad_y = grad_y
        wanted = [self.x, *parameters]
        # Batches are being pinned by another thread meanwhile.
        capture = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        # A cast that autocast remembers would belong to the graph, and be used outside of it.
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    torch.autograd.grad(function(self.x), wanted, self.grad_y)
            torch.cuda.current_stream().wait_stream(stream)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward, **capture):
                y = function(self.x)
            with torch.cuda.graph(self.backward, **capture):
                self.gradients = torch.autograd.grad(y, wanted, self.grad_y)
        self.y = y.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: _Graph, x: Tensor, *_: nn.Parameter) -> Tensor:
        graph.passes += 1
        ctx.graph, ctx.number = graph, graph.passes
        graph.x.detach().copy_(x)
        graph.forward.replay()
        return graph.y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        graph: _Graph = ctx.graph
        if ctx.number != graph.passes:
            raise RuntimeError("a forward pass through a CUDA graph has overwritten the one before its backward pass")
        graph.grad_y.copy_(grads[0])
        graph.backward.replay()
        # A tensor that nobody else holds becomes a parameter's gradient, to which a later pass adds in place: not
        # where this graph writes again meanwhile (pytorch/pytorch#181723). One that is held here is copied.
        return None, *(g if graph.accumulates else g.detach() for g in graph.gradients)
