"""Names of operators of our own, which change with what they stand for."""

import hashlib
import inspect
import sys

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
