"""Operators: of our own, whose names change with what they stand for, and PyTorch's private ones, tried first."""

import hashlib
import inspect
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from efficient_mae import __version__


def versioned(name: str, module: str) -> str:
    """The full name of an operator of this package; another one for every version of the module that defines it.

    torch.compile keeps compiled code on disk, under the operations that it was made of. An operator stands there by
    its name alone, while its shapes and its gradient have gone into the code: under one name, a program would run
    code that was compiled for another version of it.

    Args:
        name: of the operator.
        module: the defining module's `__name__`; its source is what counts.
    """
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:  # installed without it
        source = __version__
    return f"efficient_mae::{name}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def works(trial: Callable[[Tensor], object]) -> bool:
    """Whether the private operators of PyTorch that a trial calls are there and take what it gives them.

    PyTorch promises nothing of such operators; without them, the caller takes a plain form. To be asked once, at
    import: compiled code relies on the answer.

    Args:
        trial: is given a single number, (1, 1, 1) in float32 on the CPU.
    """
    try:
        trial(torch.ones(1, 1, 1, dtype=torch.float32, device="cpu"))
    except Exception:  # an operator may be missing, know other arguments, or have no kernel here
        return False
    return True
