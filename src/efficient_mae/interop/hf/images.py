"""What transformers makes of images for an exported model."""

import json
import shutil
from pathlib import Path

from efficient_mae.data import crop_share
from efficient_mae.interop.headers import ImageStatistics
from efficient_mae.interop.hf.parts import quiet, transformers_library

# What goes with an export whose pictures aren't RGB, and its module's name there.
_PROCESSOR, _MODULE = Path(__file__).with_name("processor.py"), "hf_processor"


def save_processor(folder: Path, img_size: tuple[int, int], statistics: ImageStatistics) -> None:
    """Write what `AutoImageProcessor.from_pretrained` loads, to make of images what evaluation here makes of them.

    For RGB that is transformers' own. No processor of transformers makes grey or RGBA pictures of others: for these
    a small class of ours goes with the export (:mod:`efficient_mae.interop.hf.processor`), which transformers takes
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
        settings = json.loads(file.read_bytes()) | {"auto_map": {"AutoImageProcessor": f"{_MODULE}.OwnModeProcessor"}}
        file.write_text(json.dumps(settings, indent=2) + "\n")
        shutil.copyfile(_PROCESSOR, folder / f"{_MODULE}.py")


def needs_own_processor(in_chans: int) -> bool:
    """Whether pictures of so many channels are made by a class that goes with the export."""
    return in_chans in (1, 4)
