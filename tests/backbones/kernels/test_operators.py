"""Compiled code that lies on disk is run by no program in which our operators mean something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efficient_mae.backbones.kernels.operators import versioned

# An operator whose gradient is FACTOR times its input's, compiled.
PROGRAM = """
import torch
from efficient_mae.backbones.kernels.operators import versioned

@torch.library.custom_op(versioned("doubled", __name__), mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x

doubled.register_fake(lambda x: torch.empty_like(x))
doubled.register_autograd(lambda ctx, grad: FACTOR * grad)

def gradient() -> float:
    x = torch.ones(4, requires_grad=True)
    torch.compile(lambda x: doubled(x).sum())(x).backward()
    return x.grad[0].item()
"""
RUN = """
import torch._dynamo.utils as utils
import program
print(program.gradient(), utils.counters["aot_autograd"]["autograd_cache_hit"])
"""


def run(folder: Path, factor: int) -> list[float]:
    """The compiled gradient, and how many graphs were found on disk."""
    (folder / "program.py").write_text(PROGRAM.replace("FACTOR", str(factor)))
    path = os.pathsep.join((str(folder), *filter(None, (os.environ.get("PYTHONPATH"),))))
    environment = os.environ | {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_another_version_of_an_operator_is_compiled_anew(tmp_path: Path):
    assert run(tmp_path, 2) == [2, 0]
    assert run(tmp_path, 2) == [2, 1]
    assert run(tmp_path, 3) == [3, 0]


def test_a_name_changes_with_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for number, source in enumerate(("x = 1", "x = 2", "x = 1")):
        (tmp_path / f"source{number}.py").write_text(source)
        __import__(f"source{number}")
        names.append(versioned("name", f"source{number}"))
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("efficient_mae::name_") for name in names)
