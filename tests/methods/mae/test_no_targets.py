"""Images, micro-batches, processes and global batches that leave nothing to predict: they weigh nothing."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.faults.nonfinite import Window
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import ALONE, Processes, join_processes
from efficient_mae.engine.machine.parallel import compile_blocks, parallelize, whole_tensor
from efficient_mae.engine.optim import build_adamw
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.mae import MaskedAutoencoder
from efficient_mae.tasks.pretrain import MethodObjective
from tests.processes import spawn

SMALL = dict(img_size=16, in_chans=1, depth=1, decoder_embed_dim=32, beta=7.0, mask_ratio=0.75)
IMAGES = 3


def masks(targets: bool, images: int = IMAGES) -> Tensor:
    """Four visible patches of 4 x 4: with one between them, or in a row, from which all others are too far."""
    mask = torch.ones(images, 16, dtype=torch.bool)
    mask[:, [0, 2, 8, 10] if targets else [0, 1, 2, 3]] = False
    return mask.view(images, 4, 4)


def model_of(**settings) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return emae.create_model("mae_vit_tiny_patch4", **{**SMALL, "decoder_depth": 2, **settings})


def images_of(number: int = IMAGES, seed: int = 0) -> Tensor:
    return torch.randn(number, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part_size", [None, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decoder_depth": 1, "norm_pix_loss": False},
        {"schedule": "normalise"},
        {"decoder": "cross"},
        {"decoder": "cross", "decoder_depth": 1},
    ],
)
def test_a_batch_without_a_target_has_a_loss_and_gradients_of_zero(settings: dict, part_size, precision):
    model = model_of(**settings)
    layout = model.config.planner(part_size).plan(masks(False))
    assert not layout.predicted.any() and len(layout.parts) == (3 if part_size else 1)
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = model(images_of(), layout)
        assert out.loss == out.weighted_sum == 0
        assert out.prediction.shape == out.target.shape == (0, 16) and out.errors.shape == (0,)
        for parameter, gradient in zip(model.parameters(), torch.autograd.grad(out.loss, list(model.parameters()))):
            assert gradient.shape == parameter.shape and not gradient.any()
    with torch.no_grad():
        assert model(images_of(), layout).prediction.shape == (0, 16)


def test_a_picture_without_a_target_keeps_what_is_visible():
    picture = model_of().reconstruct(images_of(), masks(False))
    hidden = masks(False).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    assert torch.equal(picture, images_of().masked_fill(hidden, 0))


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("part_size", [None, 1, 3])
def test_images_without_a_target_change_nothing_for_the_others(part_size, decoder: str):
    model = model_of(decoder=decoder).double()
    few, mask = images_of().double(), masks(True)
    more = torch.cat([images_of(2, seed=1).double(), few, images_of(1, seed=2).double()])
    mixed = torch.cat([masks(False, 2), mask, masks(False, 1)])
    alone, beside = model(few, mask), model(more, model.config.planner(part_size).plan(mixed))
    torch.testing.assert_close(beside.loss, alone.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(beside.prediction, alone.prediction, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(out.loss, list(model.parameters())) for out in (beside, alone))):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_compiled_blocks_take_nothing_too(decoder: str):
    model, compiled = model_of(decoder=decoder), model_of(decoder=decoder)
    compile_blocks(compiled)
    for targets in (True, False, True):
        losses = [one(images_of(), masks(targets)).loss for one in (model, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        pairs = zip(losses, (model, compiled))
        for ours, theirs in zip(*(torch.autograd.grad(loss, list(one.parameters())) for loss, one in pairs)):
            torch.testing.assert_close(ours, theirs)


def batch_of(number: int, targets: bool) -> TrainBatch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (IMAGES, 1, 16, 16), dtype=torch.uint8, generator=generator)
    layout = model_of().config.planner(None if number % 2 else 1).plan(masks(targets))
    return TrainBatch(images, torch.arange(IMAGES), None, [], Flat.of(layout))


def step_of(processes: Processes, parallel: str, batches: list[TrainBatch]) -> tuple[float, float, list[Tensor]]:
    """Loss over all processes, norm and gradients of a step."""
    model = model_of()
    trained = parallelize(model, processes, parallel=parallel)
    step = Step(
        trained, build_adamw(model, 0.05), MethodObjective(ImageStatistics((0.5,), (0.5,))), processes, lambda _: 1e-3
    )
    loss, norm = step.backward(0, batches)
    gradients = [whole_tensor(parameter.grad).clone() for parameter in model.parameters()]
    return processes.sum(loss).item(), norm.item(), gradients


# Of each of two processes, the micro-batches of a step: whether they leave targets.
CASES = {
    "one process": ((True,), (False,)),
    "the other": ((False,), (True,)),
    "micro-batches": ((False, True), (False, False)),
    "the last of both": ((True, False), (True, False)),
    "none": ((False,), (False,)),
}


def layout_batches(targets: tuple[bool, ...], rank: int, whole: bool) -> list[TrainBatch]:
    """A sharded decoder takes its batch whole."""
    return [batch_of(2 * (2 * rank + part) + whole, has) for part, has in enumerate(targets)]


def in_process(rank: int, found) -> None:
    with join_processes("cpu") as processes:
        for name, case in CASES.items():
            for parallel in ("ddp", "fsdp"):
                loss, norm, gradients = step_of(
                    processes, parallel, layout_batches(case[rank], rank, parallel == "fsdp")
                )
                found[name, parallel, rank] = loss, norm, [gradient.numpy() for gradient in gradients]


@pytest.fixture(scope="module")
def over_processes() -> dict:
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, in_process, shared)
        return dict(shared)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_a_process_or_micro_batch_without_a_target_weighs_nothing(over_processes: dict, name: str, parallel: str):
    """The step is that of one process which never saw them."""
    kept = [
        batch
        for rank, targets in enumerate(CASES[name])
        for batch, has in zip(layout_batches(targets, rank, parallel == "fsdp"), targets)
        if has
    ]
    for rank in range(2):
        loss, norm, gradients = over_processes[name, parallel, rank]
        if not kept:
            assert math.isnan(loss) and norm == 0 and not any(gradient.any() for gradient in gradients)
            continue
        expected_loss, expected_norm, expected = step_of(ALONE, "ddp", kept)
        assert loss == pytest.approx(expected_loss, rel=1e-5) and loss > 0
        assert norm == pytest.approx(expected_norm, rel=1e-5)
        for ours, theirs in zip(map(torch.from_numpy, gradients), expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7


def test_a_step_without_a_target_has_no_gradient_and_no_loss_in_the_log():
    model = model_of()
    optimizer = build_adamw(model, 0.05)
    objective = MethodObjective(ImageStatistics((0.5,), (0.5,)))
    step, window = Step(model, optimizer, objective, ALONE, lambda _: 1e-3, clip_grad=1.0), Window(ALONE)

    def do(index: int, *targets: bool) -> float:
        batches = [batch_of(10 * index + part, has) for part, has in enumerate(targets)]
        loss, norm = step(index, batches)
        window.add(index, loss, norm, batches)
        return loss.item()

    losses = [do(0, True, False), do(1, True)]
    by_hand = copy.deepcopy(model)
    theirs = build_adamw(by_hand, 0.05)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    do(2, False, False)
    for parameter in by_hand.parameters():
        parameter.grad = torch.zeros_like(parameter)
    theirs.step()
    for ours, expected in zip(model.parameters(), by_hand.parameters()):
        assert torch.equal(ours, expected)
    figures, skipped = window.read()
    assert figures == {"loss": pytest.approx(sum(losses) / 2, rel=1e-6), "grad_norm": 0.0} and not skipped
    do(3, False)
    assert window.read() == ({"grad_norm": 0.0}, [])


def easiest_by_hand(rows: int, columns: int, visible: int, metric: str, k: int) -> float:
    """Least difficulty of all masks of a grid, at patch size 16."""
    cells = torch.arange(rows * columns)
    every = (torch.arange(2 ** len(cells))[:, None] >> cells & 1 == 1).view(-1, rows, columns)
    every = every[every.flatten(1).sum(dim=1) == len(cells) - visible]
    return emae.difficulty(every, 16, metric, **({"k": k} if metric == "p2dist" else {}))[every].min().item()


@pytest.mark.parametrize("metric", ["p2dist", "p2dist_exact"])
@pytest.mark.parametrize(
    ("rows", "columns", "visible", "k"),
    [(3, 4, 9, 8), (3, 4, 9, 1), (3, 4, 9, 20), (3, 4, 2, 8), (2, 2, 2, 8), (2, 5, 4, 8), (1, 7, 3, 8), (1, 2, 1, 5)],
)
def test_a_beta_that_can_never_predict_anything_is_refused_and_no_other(
    rows: int, columns: int, visible: int, k: int, metric: str
):
    easiest = easiest_by_hand(rows, columns, visible, metric, k)
    make = partial(
        emae.create_model, "mae_vit_tiny_patch16", img_size=(16 * rows, 16 * columns), depth=1, decoder_depth=1,
        mask_ratio=1 - (visible + 0.5) / (rows * columns), difficulty=metric, k=k,
    )  # fmt: skip
    make(beta=easiest * 1.001)
    with pytest.raises(ValueError, match="no patch is that easy; take at least") as refused:
        make(beta=easiest * 0.999)
    advised = float(str(refused.value).split("at least ")[1].split(",")[0])
    make(beta=advised)
    assert easiest <= advised < easiest + 0.01
