"""A batch that does not fit: what is said, and whether what is proposed does fit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from efficient_mae.engine import memory
from efficient_mae.engine.memory import advice, explain_out_of_memory, largest_batch
from efficient_mae.engine.settings import RunConfig
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

GPU, GIB = torch.device("cuda", 0), 2**30


def config(**settings) -> PretrainConfig:
    return PretrainConfig(data="x", out="y", **({"batch_size": 4096} | settings))


def test_advice():
    assert advice(config(), 1, GPU, 79 * GIB, 1100) == (
        "batch_size=4096: its micro-batches of 4096 images do not fit in the 79.0 GiB that cuda:0 has beside the "
        "model's weights: about 1100 would; raise --accum_iter to 4 (micro-batches of 1024, same result), or "
        "pass --grad_checkpointing true, or lower --batch_size"
    )
    several = advice(config(accum_iter=2, grad_checkpointing=True), 8, GPU, 20 * GIB, 100)
    assert "micro-batches of 256 images" in several and "raise --accum_iter to 8 (micro-batches of 64" in several
    assert "grad_checkpointing" not in several


def test_advice_where_nothing_is_known_of_an_image():
    assert "weights; raise --accum_iter to 2 (micro-batches of 256, same result)" in advice(
        config(parallel="fsdp"), 8, GPU, 79 * GIB, None
    )


def test_advice_where_nothing_fits():
    assert "nor would a single image: pass --grad_checkpointing true, or pass --parallel fsdp" in advice(
        config(), 8, GPU, GIB, 0
    )
    plain = RunConfig(data="x", out="y", batch_size=8)
    assert advice(plain, 1, GPU, GIB, 0).endswith("take a smaller model or more processes")


def test_the_largest_batch_is_what_its_tensors_take():
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(net.parameters())
    # By hand: the input, what goes into GELU and what comes out of it, and the output for its square.
    each = 4 * (64 + 256 + 256 + 64)
    weights = 4 * sum(parameter.numel() for parameter in net.parameters())

    def probe(images: int) -> torch.Tensor:
        return net(torch.ones(images, 64)).square().sum()

    free = int((3 * weights + 1000.5 * each) / 0.9)
    assert largest_batch(free, optimizer, probe, torch.device("cpu")) == 1000
    assert largest_batch(2 * weights, optimizer, probe, torch.device("cpu")) == 0
    probe(2).backward()
    optimizer.step()  # now its state is there
    assert largest_batch(int((weights + 1000.5 * each) / 0.9), optimizer, probe, torch.device("cpu")) == 1000


@pytest.mark.parametrize(
    "message", ["shapes differ", "could not create a primitive descriptor for the matmul primitive."]
)
def test_other_errors_pass(message: str):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with (
        pytest.raises(RuntimeError, match=message),
        explain_out_of_memory(config(), 1, torch.device("cpu"), optimizer, None),
    ):
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
    monkeypatch.setattr(memory, "free_memory", lambda _: GIB)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with (
        pytest.raises(ValueError, match=r"do not fit in the 1.0 GiB that cpu has .* --accum_iter to 2"),
        explain_out_of_memory(config(), 1, torch.device("cpu"), optimizer, None),
    ):
        raise error


# Little room beyond what the imports take, for this process' addresses are limited, or its container says to leave it
# no more; then a batch that needs several times as much.
PROGRAM = """
import resource, sys
from pathlib import Path
from efficient_mae.cli import main
from efficient_mae.engine import free_memory
import efficient_mae.tasks.pretrain, torch.utils.tensorboard
def pages(which):
    return int(Path("/proc/self/statm").read_text().split()[which]) * resource.getpagesize()
def limited():
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + (1200 << 20), resource.RLIM_INFINITY))
def contained():
    most = pages(1) + (1200 << 20)
    free_memory._group_memory = lambda: most - pages(1)
globals()[sys.argv[1]]()
sys.exit(main(sys.argv[2:]))
"""


def pretrain_in_little_memory(why: str, out: Path) -> subprocess.CompletedProcess[str]:
    arguments = {
        "data": "fashion-mnist-sample", "out": out, "model": "mae_vit_small_patch16", "img_size": 224, "in_chans": 1,
        "batch_size": 512, "num_workers": 0, "epochs": 1, "precision": "fp32", "device": "cpu", "mask_ratio": 0.75,
        "log_every": 1,
    }  # fmt: skip
    flags = (f"--{name}={value}" for name, value in arguments.items())
    command = [sys.executable, "-c", PROGRAM, why, "pretrain", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("why", ["limited", "contained"])
def test_a_batch_that_does_not_fit_the_hosts_memory(why: str, tmp_path: Path):
    done = pretrain_in_little_memory(why, tmp_path / "run")
    assert done.returncode == 2, done.stderr
    *_, line = done.stderr.splitlines()
    found = re.search(
        r"micro-batches of 512 images do not fit in the .* GiB that cpu has .*: about (\d+) would", line
    )
    assert found and 8 <= int(found[1]) < 512, line
    assert re.search(r"raise --accum_iter to \d+ \(micro-batches of \d+, same result\)", line)


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_a_gpu_and_one_that_does(tmp_path: Path):
    settings = {
        "data": "fashion-mnist-sample", "out": str(tmp_path / "run"), "model": "mae_vit_large_patch16",
        "img_size": 224, "batch_size": 8192, "epochs": 1, "mask_ratio": 0.25, "beta": None, "device": "cuda",
    }  # fmt: skip
    with pytest.raises(ValueError, match="micro-batches of 8192 images do not fit") as refusal:
        pretrain(PretrainConfig(**settings))
    proposed = re.search(r"raise --accum_iter to (\d+)", str(refusal.value))
    assert proposed and 2 <= int(proposed[1]) <= 512, refusal.value
    run = pretrain(PretrainConfig(**settings, accum_iter=int(proposed[1])))
    assert (run / "encoder.safetensors").exists()
