"""What transformers makes of images for an exported model; and the library itself, asked for when it is used."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficient_mae.data import crop_share
from efficient_mae.errors import InputError
from efficient_mae.interop.headers import ImageStatistics

# What goes with an export whose pictures aren't RGB.
_PROCESSOR = Path(__file__).with_name("hf_processor.py")


def save_processor(folder: Path, img_size: tuple[int, int], statistics: ImageStatistics) -> None:
    """Write what `AutoImageProcessor.from_pretrained` loads, to make of images what evaluation here makes of them.

    For RGB that is transformers' own. No processor of transformers makes grey or RGBA pictures of others: for these
    a small class of ours goes with the export (:mod:`efficient_mae.interop.hf_processor`), which transformers takes
    if it is told `trust_remote_code=True`; else, its own, for images that are grey, or RGBA, already.

    Args:
        img_size: (height, width) in pixels, alike.

    Raises:
        OSError: the disk is full or not writable.
    """
    transformers = transformers_library()
    in_chans, (height, width) = len(statistics.mean), img_size
    with quiet(transformers):
        # By itself it would squash whole images.
        transformers.ViTImageProcessor(
            size={"shortest_edge": int(height / crop_share(img_size, statistics.size))},
            do_center_crop=True,
            crop_size={"height": height, "width": width},
            resample=3,  # bicubic
            do_convert_rgb=in_chans == 3,
            image_mean=list(statistics.mean),
            image_std=list(statistics.std),
        ).save_pretrained(folder)
    if needs_own_processor(in_chans):
        file = folder / "preprocessor_config.json"
        settings = json.loads(file.read_bytes()) | {
            "auto_map": {"AutoImageProcessor": f"{_PROCESSOR.stem}.OwnModeProcessor"}
        }
        file.write_text(json.dumps(settings, indent=2) + "\n")
        shutil.copyfile(_PROCESSOR, folder / _PROCESSOR.name)


def needs_own_processor(in_chans: int) -> bool:
    """Whether pictures of so many channels are made by a class that goes with the export."""
    return in_chans in (1, 4)


def transformers_library() -> Any:
    """transformers.

    Raises:
        InputError: it isn't installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("transformers isn't installed; pip install 'efficient-mae[hub]'") from None
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and loading reports, which would mix with our own lines; what it adds to
    Python's path, for code that goes with a model, is taken back."""
    logging = transformers.utils.logging
    path, level, bars = list(sys.path), logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        sys.path[:] = path
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
