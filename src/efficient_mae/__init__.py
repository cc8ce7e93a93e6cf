"""Efficient MAE: masked autoencoders that work, and cost less, at mask ratio 0.85 and above.

What `__init__.pyi` lists is imported when it is first used: the command line explains itself before torch is loaded.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
