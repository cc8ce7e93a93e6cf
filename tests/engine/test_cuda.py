"""The step on CUDA waits for nothing, compiles once, and computes what a CPU computes."""

import copy
from functools import partial

import pytest
import torch
import torch._dynamo.utils

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.machine.parallel import compile_blocks, parallelize
from efficient_mae.engine.optim import build_adamw, learning_rate
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.mae import MaskedAutoencoder, MaskLayout
from efficient_mae.tasks.pretrain import MethodObjective
from tests.processes import spawn

DECODERS = ["self", "cross"]


def small_model(decoder: str) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=2, decoder_depth=3, decoder_embed_dim=32, beta=20.0,
        decoder=decoder,
    )  # fmt: skip


def layouts(model: MaskedAutoencoder, number: int, images: int = 4) -> list[MaskLayout]:
    """No two of one packed length."""
    found: dict[int, MaskLayout] = {}
    generator = torch.Generator().manual_seed(0)
    while len(found) < number:
        layout = model.plan(images, generator=generator)
        found.setdefault(len(layout.ids_predict), Flat.of(layout).value)  # as it comes from a worker
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_blocks_are_not_recompiled_as_packed_lengths_change(decoder: str):
    spawn(1, _compile_for_several_lengths, decoder)


def _compile_for_several_lengths(_: int, decoder: str) -> None:
    """In a process of its own: the checks of shapes and types that tests switch on would be compiled too."""
    model = small_model(decoder)
    plain = copy.deepcopy(model)
    compile_blocks(model)
    images = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    different = layouts(model, 5)
    for layout in different[:2]:
        model(images, layout).loss.backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layout in different[2:]:
            loss = model(images, layout).loss
            loss.backward()
            torch.testing.assert_close(loss, plain(images, layout).loss, rtol=1e-5, atol=0)
    assert_compiled_once(decoder)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("images", [4, 36], ids=["few", "as many as patches"])
def test_compiled_blocks_have_the_gradients_of_plain_ones(images: int, decoder: str):
    spawn(1, _compare_compiled_gradients, images, decoder)


def _compare_compiled_gradients(_: int, number: int, decoder: str) -> None:
    model = small_model(decoder)
    plain = copy.deepcopy(model)
    torch.compile = partial(torch.compile, backend="aot_eager")  # all but the code that it would write
    compile_blocks(model)
    images = torch.rand(number, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    layout = layouts(model, 1, number)[0]
    for each in (model, plain):
        each(images, layout).loss.backward()
    assert_compiled_once(decoder)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def assert_compiled_once(decoder: str) -> None:
    """Of a block of the encoder one graph, and of the decoder's its first, one between and its last, which is like
    those between where it attends to visible patches alone; none broken.
    """
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == (4 if decoder == "self" else 3), counted["stats"]
    assert not counted["graph_break"], counted["graph_break"]
    assert not counted["recompiles"], counted["recompiles"]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("decoder", DECODERS)
class TestStep:
    def test_nothing_waits_for_the_device(self, decoder: str, compiled: bool, precision: str):
        spawn(1, _step_without_waiting, decoder, compiled, precision)

    def test_loss_and_gradients_are_a_cpus(self, decoder: str, compiled: bool, precision: str):
        spawn(1, _compare_with_a_cpu, decoder, compiled, precision)


def _step_without_waiting(_: int, decoder: str, compiled: bool, precision: str) -> None:
    step, batches = prepared(decoder, compiled, precision)
    for index in range(2):
        step(index, [batches[index]])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for index in range(2, 4):
                step(index, [batches[index]])
            weights = step.model.get_parameter("backbone.cls_token")
            with torch.no_grad():
                weights[..., 0] = float("nan")
                before = weights.clone()
            norms = [step(index, [batches[index]])[1] for index in (4, 5)]  # which are skipped
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(norm.isfinite() for norm in norms)
    torch.testing.assert_close(weights, before, rtol=0, atol=0, equal_nan=True)
    if compiled:
        assert_compiled_once(decoder)


def _compare_with_a_cpu(_: int, decoder: str, compiled: bool, precision: str) -> None:
    model = small_model(decoder)
    layout = layouts(model, 1)[0]
    images = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(model).cuda()
    if compiled:
        compile_blocks(other)
    expected = model(images, layout).loss
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        loss = other(images.cuda(), layout).loss
    expected.backward()
    loss.backward()
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        difference = (mine.grad.cpu() - theirs.grad).norm()
        assert difference <= tolerance * theirs.grad.norm() + 1e-6


def prepared(decoder: str, compiled: bool, precision: str) -> tuple[Step, list[TrainBatch]]:
    processes = Processes(0, 1, torch.device("cuda"))
    model, images = small_model(decoder), torch.zeros(4, 1, 24, 24, dtype=torch.uint8)
    batches = [
        TrainBatch(images, torch.arange(4), None, [], Flat.of(layout)).to("cuda") for layout in layouts(model, 6)
    ]
    trained = parallelize(model, processes, precision=precision, compile=compiled)
    rate = partial(learning_rate, peak=1e-3, warmup_steps=0, total_steps=10)
    objective = MethodObjective(ImageStatistics((0.5,), (0.5,)))
    return Step(trained, build_adamw(model, 0.05), objective, processes, rate, precision, clip_grad=1.0), batches
