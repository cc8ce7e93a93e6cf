"""A batch that does not fit: what is said before the first step, and whether what is proposed does fit."""

import re
from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import PretrainTransform, Reading, TrainDataset, open_source
from efficient_mae.engine.machine import memory
from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.engine.machine.memory import BatchMemory, explain_out_of_memory
from efficient_mae.engine.optim import build_adamw
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.pretrain import MethodObjective, pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

GIB = 2**30
LINE = (
    r"batch_size=(\d+): micro-batches of (\d+) images take about ([\d.]+) GiB beside the weights, "
    r"and cpu has ([\d.]+) GiB"
)


# What has been counted, by what it depends on: no test counts again what another has.
COUNTED: dict[tuple, dict[int, tuple[int, int]]] = {}


def memory_of(
    name: str, free: float, monkeypatch: pytest.MonkeyPatch, world_size: int = 1, **settings
) -> BatchMemory:
    """Of a model whose run would have so many bytes."""
    monkeypatch.setattr(memory, "free_memory", lambda _: int(free))
    batching = {name: settings.pop(name) for name in ("multiple", "accumulates") if name in settings}
    num_workers = settings.pop("num_workers", 8)
    depths = {"depth": settings.pop("depth", 2), "decoder_depth": settings.pop("decoder_depth", 1)}
    masks = {"mask_ratio": settings.pop("mask_ratio", 0.85), "beta": settings.pop("beta", 26.0)}
    config = PretrainConfig(data="x", out="y", **{"batch_size": 4096, "precision": "fp32"} | settings)
    with torch.device("meta"):
        model = emae.create_model(name, **masks, **depths)
    model.set_grad_checkpointing(config.grad_checkpointing)
    unit = model.config.unit(ALONE.device)

    rows, columns = model.config.grid_size
    dataset = TrainDataset(
        open_source("fashion-mnist-sample"),
        PretrainTransform((224, 224), Reading(3)),
        seed=0,
        num_patches=rows * columns,
        make_masks=model.config.planner(unit),
    )
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value] * self.world_size)
    objective = MethodObjective(ImageStatistics((0.5,) * 3, (0.5,) * 3))
    processes = Processes(0, world_size, ALONE.device)
    optimizer = build_adamw(model, 0.05)
    batching |= {"unit": unit, "num_workers": num_workers}
    found = BatchMemory(config, processes, optimizer, model, objective, dataset, **batching)
    found._counts = COUNTED.setdefault((model.config, config.grad_checkpointing, config.precision, config.epochs), {})
    return found


def refusal(checked: BatchMemory) -> str:
    with pytest.raises(ValueError) as refused:
        checked.check()
    return str(refused.value)


def test_advice(monkeypatch: pytest.MonkeyPatch):
    said = refusal(memory_of("mae_vit_base_patch16", 20 * GIB, monkeypatch))
    assert re.fullmatch(
        rf"{LINE}: about \d+ would fit; raise --accum_iter to \d+ \(micro-batches of \d+\), "
        "or pass --grad_checkpointing true, or lower --batch_size",
        said,
    ), said
    fits, accum, images = (
        int(re.search(pattern, said)[1])
        for pattern in (r"about (\d+) would", r"accum_iter to (\d+)", r"\(micro-batches of (\d+)")
    )
    assert images * accum == 4096 and fits / 2 < images <= fits


def test_advice_where_nothing_fits(monkeypatch: pytest.MonkeyPatch):
    said = refusal(memory_of("mae_vit_base_patch16", GIB, monkeypatch, world_size=8))
    assert said.endswith("nor would a single image fit; pass --grad_checkpointing true, or pass --parallel fsdp")
    alone = refusal(memory_of("mae_vit_base_patch16", GIB, monkeypatch, grad_checkpointing=True))
    assert alone.endswith("nor would a single image fit; take a smaller model or more processes")


def test_what_is_proposed_is_not_refused_and_what_barely_fits_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    said = refusal(memory_of("mae_vit_base_patch16", 20 * GIB, monkeypatch))
    fits = int(re.search(r"about (\d+) would", said)[1])
    memory_of("mae_vit_base_patch16", 20 * GIB, monkeypatch, batch_size=fits).check()
    assert capsys.readouterr().err == ""
    memory_of("mae_vit_base_patch16", 20 * GIB, monkeypatch, batch_size=int(fits * 1.06)).check()
    rest = LINE.removeprefix(r"batch_size=(\d+): ")
    assert re.match(rf"memory may not do: {rest}; if it doesn't, raise --accum_iter", capsys.readouterr().err)
    assert "about" in refusal(memory_of("mae_vit_base_patch16", 20 * GIB, monkeypatch, batch_size=int(fits * 1.6)))


def test_a_few_images_are_not_taken_for_all_that_gradients_cost(monkeypatch: pytest.MonkeyPatch):
    """ViT-L at ratio 0.25: of 2 or 4 images the gradients are the peak, and an image would seem to cost nothing."""
    room, depths = 6 * GIB, {"depth": 3, "decoder_depth": 2}
    batch = {"batch_size": 8192, "mask_ratio": 0.25, "beta": None}
    found = memory_of("mae_vit_large_patch16", room, monkeypatch, **batch, **depths)
    fits = int(re.search(r"about (\d+) would", refusal(found))[1])
    assert 20 < fits < 600
    # Counted as a whole: what is proposed fits, and not many more would.
    whole = max(found._count(fits)) + 3 * 4 * sum(parameter.numel() for parameter in found._model.parameters())
    assert 0.8 * room < found._taken[1] * whole < 1.05 * room


def test_sharded_gradients_and_state_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    needed = []
    for parallel in ("ddp", "fsdp"):
        settings = {"batch_size": 4, "world_size": 2, "parallel": parallel}
        said = refusal(memory_of("mae_vit_huge_patch14", GIB, monkeypatch, **settings))
        needed.append(float(re.search(LINE, said)[3]))
    assert needed[0] > 1.3 * needed[1]


def test_a_micro_batch_of_one_image_is_counted_as_one(monkeypatch: pytest.MonkeyPatch):
    found = memory_of("mae_vit_base_patch16", GIB, monkeypatch, batch_size=1)
    least = found.needed(1, found._taken[0])
    assert least < found.needed(2, found._taken[0])
    memory_of("mae_vit_base_patch16", 1.01 * least, monkeypatch, batch_size=1).check()
    refused = refusal(memory_of("mae_vit_base_patch16", 0.99 * least, monkeypatch, batch_size=1))
    assert "nor would a single image" in refused


def test_what_is_proposed_is_taken_by_the_run(monkeypatch: pytest.MonkeyPatch):
    def said(**batching) -> str:
        found = memory_of("mae_vit_tiny_patch16", GIB, monkeypatch, batch_size=4098, **batching)
        monkeypatch.setattr(memory, "free_memory", lambda _: int(0.8 * found.needed(4098)))
        return refusal(found)

    assert "raise --accum_iter to 2 (micro-batches of 2049)" in said()
    assert "raise --accum_iter to 3 (micro-batches of 1366)" in said(multiple=2)
    assert "accum_iter" not in (probe := said(accumulates=False)) and "lower --batch_size" in probe


@pytest.mark.parametrize(
    "message", ["shapes differ", "could not create a primitive descriptor for the matmul primitive."]
)
def test_other_errors_pass(message: str, monkeypatch: pytest.MonkeyPatch):
    unused = memory_of("mae_vit_tiny_patch16", GIB, monkeypatch)
    with pytest.raises(RuntimeError, match=message), explain_out_of_memory(unused):
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."
        ),
        RuntimeError("could not create a primitive"),
    ],
)
def test_what_is_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch):
    unchecked = memory_of("mae_vit_tiny_patch16", GIB, monkeypatch)
    with (
        pytest.raises(ValueError, match=r"micro-batches of 4096 .* --accum_iter to 2"),
        explain_out_of_memory(unchecked),
    ):
        raise error


SETTINGS = {
    "data": "fashion-mnist-sample", "model": "mae_vit_small_patch16", "img_size": 224, "in_chans": 1,
    "num_workers": 0, "epochs": 1, "precision": "fp32", "device": "cpu", "mask_ratio": 0.75, "log_every": 1,
    "depth": 2, "decoder_depth": 1,
}  # fmt: skip


def test_a_batch_that_does_not_fit_the_host_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(memory, "free_memory", lambda _: GIB // 4)
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, "batch_size": 512, "out": tmp_path / "run"}.items()]
    assert main(["pretrain", *flags]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    found = re.match(rf"emae: {LINE}: about (\d+) would fit; raise --accum_iter", line)
    assert found and 8 <= int(found[5]) < 512, line
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert main(["pretrain", *flags, "--batch_size=500"]) == 2  # the directory is still anybody's
    assert "micro-batches of 500 images" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_a_gpu_and_one_that_does(tmp_path: Path):
    settings = {
        "data": "fashion-mnist-sample", "out": str(tmp_path / "run"), "model": "mae_vit_large_patch16",
        "img_size": 224, "batch_size": 8192, "epochs": 1, "mask_ratio": 0.25, "beta": None, "device": "cuda",
        "num_workers": 1, "compile": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="micro-batches of 8192 images take about") as refusal:
        pretrain(PretrainConfig(**settings))
    proposed = re.search(r"raise --accum_iter to (\d+)", str(refusal.value))
    assert proposed and 2 <= int(proposed[1]) <= 512, refusal.value
    run = pretrain(PretrainConfig(**settings, accum_iter=int(proposed[1])))
    assert (run / "encoder.safetensors").exists()


@pytest.mark.parametrize(("num_workers", "free"), [(8, GIB // 2), (10**8, 10**6 * GIB)])
def test_those_who_read_images_may_be_what_does_not_fit(num_workers: int, free: int, monkeypatch: pytest.MonkeyPatch):
    """However little a step takes."""
    settings: dict = {"batch_size": 1, "num_workers": num_workers}
    refused = refusal(memory_of("mae_vit_tiny_patch16", free, monkeypatch, **settings))
    said = rf"num_workers={num_workers}: {num_workers} processes that read images take about [\d.]+ GiB, and cpu has "
    assert re.match(said, refused) and refused.endswith("; lower --num_workers")
    memory_of("mae_vit_tiny_patch16", free, monkeypatch, **settings | {"num_workers": 0}).check()
