"""PyTorch's private operators: where they are missing, or refuse, training takes the plain forms."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_mae.backbones.kernels.operators import works

SOURCES = Path(__file__).parents[3] / "src" / "efficient_mae"
PRIVATE = {
    "_scaled_dot_product_flash_attention_for_cpu": "aten",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "aten",
    "_softmax_backward_data": "aten",
    "_linear_pointwise": "mkldnn",
}

# A step in each precision, as on AMD's processors: with all operators, without any, and with ones that refuse. Forked
# before our package is imported, which tries them then. Each child writes what it found.
PROGRAM = f"""
import io, os, sys
from pathlib import Path
import torch
import torch._dynamo, torch.utils.flop_counter  # PyTorch's own users of these operators: they have them
import timm  # which uses none of them: no child need import it anew

PRIVATE, TAKEN = {PRIVATE!r}, set()
torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
open_file = Path.open


def opened(path, *a, **k):
    return io.StringIO("AuthenticAMD") if str(path) == "/proc/cpuinfo" else open_file(path, *a, **k)


Path.open = opened


def recorded(name, operator):
    return lambda *a, **k: TAKEN.add(name) or operator(*a, **k)


def refusing(*_, **__):
    raise NotImplementedError("no kernel for this processor")


def prepare(form):
    for name, namespace in PRIVATE.items():
        operators = getattr(torch.ops, namespace)
        operator = getattr(operators, name)
        setattr(operators, name, recorded(name, operator) if form == "with" else refusing)
        if form == "without":
            delattr(operators, name)
    if form == "without":
        found = torch._ops._OpNamespace.__getattr__
        torch._ops._OpNamespace.__getattr__ = lambda self, name: found(self, "none" if name in PRIVATE else name)


def step(precision):
    import efficient_mae as emae

    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", img_size=112, in_chans=1, depth=1, decoder_depth=2)
    images, generator = torch.rand(8, 1, 112, 112), torch.Generator()
    optimizer = torch.optim.AdamW(model.parameters())
    TAKEN.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(images, generator=generator.manual_seed(1)).loss
    loss.backward()
    optimizer.step()
    gradients = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    after = model(images, generator=generator.manual_seed(1)).loss
    return {{"loss": loss.item(), "after": after.item(), "gradients": gradients, "taken": list(TAKEN)}}


for form in ("with", "without", "refusing"):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, form
        continue
    prepare(form)
    torch.save({{precision: step(precision) for precision in ("fp32", "bf16")}}, Path(sys.argv[1]) / form)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found, by form and precision."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    folder = tmp_path_factory.mktemp("steps")
    path = os.pathsep.join((str(SOURCES.parent), str(SOURCES.parents[1])))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {form: torch.load(folder / form) for form in ("with", "without", "refusing")}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.02)])
@pytest.mark.parametrize("form", ["without", "refusing"])
def test_a_step_without_them(steps: dict[str, Any], form: str, precision: str, tolerance: float):
    found, expected = steps[form][precision], steps["with"][precision]
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert found["after"] == pytest.approx(expected["after"], rel=tolerance)
    assert found["after"] < found["loss"]
    difference = (found["gradients"] - expected["gradients"]).norm()
    assert difference < tolerance * expected["gradients"].norm()


def test_they_are_taken_where_they_work(steps: dict[str, Any]):
    """So that a trial which fails by a mistake of ours isn't taken for PyTorch's."""
    taken = {precision: set(found["taken"]) for precision, found in steps["with"].items()}
    assert taken["fp32"] == set(PRIVATE) - {"_softmax_backward_data"}
    assert taken["bf16"] >= {"_softmax_backward_data"}


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        (lambda one: torch.ops.aten.add(one, one), True),
        (lambda one: torch.ops.aten.no_such_operator(one), False),
        (lambda one: torch.ops.no_such_namespace.add(one), False),
        (lambda one: torch.ops.aten._softmax_backward_data(one), False),
        (lambda one: torch.ops.aten._softmax_backward_data(one, one, 7, one.dtype), False),
    ],
    ids=["works", "missing", "no namespace", "other arguments", "refused"],
)
def test_a_trial(trial, expected: bool):
    assert works(trial) is expected


def test_no_other_file_uses_operators_by_name():
    users = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if re.search(r"torch\.ops\b|aten::|mkldnn::|torch\._C\b", path.read_text())
    }
    assert users == {"backbones/kernels/attention.py", "backbones/kernels/linear.py"}
