"""What all models of transformers have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# An epsilon up to this changes features by less than float32 does; transformers' own models have 1e-12.
LARGEST_EPS = 1e-5


def square_side(config: Any, name: str) -> int:
    """Height and width in a configuration, which are one number or two.

    Raises:
        InputError: they are two.
    """
    value = getattr(config, name)
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise InputError(f"{name}={value}: transformers' model works for squares only")
    return sides.pop()


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and loading reports, which would mix with our own lines."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def require_transformers() -> Any:
    """The library; raises InputError where it isn't installed."""
    try:
        import transformers
    except ImportError:
        raise InputError("transformers isn't installed; pip install 'efficient-mae[hub]'") from None
    return transformers


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file or it is something else."""
    try:
        content = parse_json(file.read_bytes(), str(file))
    except (OSError, InputError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
