"""What is applied from outside a model, on two processes: the same numbers, in fewer places."""

import atexit
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

import efficient_mae as emae
from efficient_mae.engine.machine import parallel
from efficient_mae.engine.machine.distributed import ALONE, autocast, join_processes
from efficient_mae.engine.machine.parallel import Skeleton, compiles, parallelize, whole_tensor
from efficient_mae.errors import InputError
from efficient_mae.methods.mae import MaskedAutoencoder
from tests.processes import spawn

IMAGES = torch.linspace(-1, 1, 4 * 24 * 24).view(4, 1, 24, 24)


def small_model(grad_checkpointing: bool = False) -> MaskedAutoencoder:
    torch.manual_seed(0)
    model = emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=2, decoder_depth=2, decoder_embed_dim=32, beta=20.0
    )
    model.set_grad_checkpointing(grad_checkpointing)
    return model


def gradients(model: MaskedAutoencoder, precision: str) -> dict[str, torch.Tensor]:
    """Of the same images and masks on every process, so that their mean is what one process has."""
    layout = small_model().plan(4, generator=torch.Generator().manual_seed(0))
    with autocast(precision, torch.device("cpu")):
        loss = model(IMAGES, layout).loss
    loss.backward()
    found = {name: whole_tensor(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def in_process(rank: int, results) -> None:
    with join_processes("cpu") as processes:
        for precision in ("fp32", "bf16"):
            for grad_checkpointing in (False, True):
                model = small_model(grad_checkpointing)
                skeleton = Skeleton(model)
                trained = parallelize(model, processes, parallel="fsdp", precision=precision)
                found = gradients(trained, precision)
                results[rank, precision, grad_checkpointing] = {name: grad.numpy() for name, grad in found.items()}
        held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        whole = skeleton.fill(model.eval(), wanted=processes.is_main)
        same = whole is model
        if processes.is_main:
            state, expected = whole.state_dict(), small_model().state_dict()
            same = not whole.training and all(torch.equal(state[name], value) for name, value in expected.items())
        results[rank, "held"], results[rank, "same"] = held, same


@pytest.fixture(scope="module")
def results() -> dict:
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, in_process, shared)
        return dict(shared)


def write_threads(file: Path) -> None:
    file.write_text("\n".join(name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")))


def train_and_write_threads_at_exit(rank: int, folder: Path) -> None:
    atexit.register(write_threads, folder / str(rank))  # what is registered first is called last
    with join_processes("cpu") as processes:
        gradients(parallelize(small_model(), processes, parallel="fsdp"), "fp32")
        write_threads(folder / f"{rank} at work")
    atexit._run_exitfuncs()  # as at a program's end; a process that multiprocessing forks leaves without


def test_no_thread_is_left_that_could_abort_python_at_its_end(tmp_path: Path):
    spawn(2, train_and_write_threads_at_exit, tmp_path)
    for rank in ("0", "1"):
        assert "pt_gloo_runloop" in (tmp_path / f"{rank} at work").read_text()
        assert "gloo" not in (tmp_path / rank).read_text()


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_sharded_gradients(results: dict, grad_checkpointing: bool):
    expected = gradients(small_model(), "fp32")
    for rank in (0, 1):
        found = results[rank, "fp32", grad_checkpointing]
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_sharded_gradients_in_bf16_are_as_near_to_float32_as_autocasts(results: dict, grad_checkpointing: bool):
    exact, halved = gradients(small_model(), "fp32"), gradients(small_model(), "bf16")
    for rank in (0, 1):
        for name, value in results[rank, "bf16", grad_checkpointing].items():
            assert value.dtype == "float32"
            theirs = (halved[name] - exact[name]).norm() / exact[name].norm()
            ours = (torch.from_numpy(value) - exact[name]).norm() / exact[name].norm()
            assert ours < 2 * theirs + 0.01, name


def test_each_process_holds_its_part(results: dict):
    parameters = sum(p.numel() for p in small_model().parameters())
    assert results[0, "held"] + results[1, "held"] == parameters
    assert max(results[0, "held"], results[1, "held"]) < 0.52 * parameters


def test_a_whole_copy_of_a_sharded_model(results: dict):
    assert results[0, "same"] and results[1, "same"]


def test_one_process_shares_with_nobody():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    assert parallelize(model, ALONE, parallel="fsdp") is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def on_gpus(rank: int, results) -> None:
    with join_processes("cuda") as processes:
        assert processes.gather({"rank": rank}) == [{"rank": other} for other in range(2)]
        processes.barrier()
        model = small_model().to(processes.device)
        trained = parallelize(model, processes, parallel="fsdp", precision="bf16")
        optimizer = torch.optim.AdamW(trained.parameters(), fused=True)
        layout = small_model().plan(4, generator=torch.Generator().manual_seed(0)).to(processes.device)
        images = IMAGES.to(processes.device)
        for step in range(3):
            if step == 2:  # all is made that is made once
                torch.cuda.set_sync_debug_mode("error")
            with autocast("bf16", processes.device):
                out = trained(images, layout)
            out.errors.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("default")
        results[rank] = {name: whole_tensor(p).detach().cpu().numpy() for name, p in model.named_parameters()}


def test_where_torch_compile_does_not_work_blocks_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(_: object) -> None:
        raise RuntimeError("An exception occurred in a subprocess:\n\nTraceback\nRuntimeError: no C compiler\n")

    monkeypatch.setattr(torch, "compile", fails)
    assert not compiles(ALONE) and not capsys.readouterr().err  # a CPU is not asked
    gpu = torch.device("cuda")
    assert not compiles(replace(ALONE, device=gpu))
    said = (
        "compile=auto: torch.compile does not work here (RuntimeError: no C compiler); the blocks run as they are\n"
    )
    assert capsys.readouterr().err == said
    assert not compiles(replace(ALONE, rank=1, device=gpu)) and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("compile", "works", "done"), [("auto", True, 1), ("auto", False, 0), (True, False, 1), (False, True, 0)]
)
def test_when_blocks_are_compiled(compile: bool | str, works: bool, done: int, monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(parallel, "compiles", lambda _: works)
    monkeypatch.setattr(parallel, "compile_blocks", compiled.append)
    model = small_model()
    parallelize(model, ALONE, compile=compile)
    assert compiled == [model] * done


def test_a_model_without_blocks_of_ours_is_not_compiled_in_silence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "compiles", lambda _: True)
    with pytest.raises(InputError, match="compile=true: blocks of this model are timm's"):
        parallelize(torch.nn.Linear(2, 2), ALONE, compile=True)
    parallelize(torch.nn.Linear(2, 2), ALONE, compile="auto")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_step_without_waiting_for_them():
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, on_gpus, shared)
        found = dict(shared)
    before = dict(small_model().named_parameters())
    for name, value in found[0].items():
        assert (value == found[1][name]).all()
        assert not torch.equal(torch.from_numpy(value), before[name])
