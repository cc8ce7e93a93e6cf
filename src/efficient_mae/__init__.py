"""Efficient MAE: masked autoencoders that work, and cost less, at mask ratio 0.85 and above.

What `__init__.pyi` lists is imported when it is first used: the command line explains itself before torch is loaded.
"""

import sys
from types import ModuleType

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(ModuleType):
    """`report`, `study` and `demo` are functions here, and stay so when the parts of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
