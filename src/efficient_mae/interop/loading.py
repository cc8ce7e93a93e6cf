"""A trained model from a run, a checkpoint, an export, a transformers folder or an original `.pth`."""

from pathlib import Path

from efficient_mae.backbones import Backbone
from efficient_mae.data import default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.errors import InputError
from efficient_mae.interop.files import ImageStatistics, find_weights, load_own, read_metadata, read_statistics
from efficient_mae.interop.mae_files import SUFFIXES, read_mae_checkpoint
from efficient_mae.interop.vit_mae import hf_statistics, is_hf_folder, load_hf_folder
from efficient_mae.methods import Method, MethodConfig, backbone_of
from efficient_mae.methods.tokens import TokenMethod


@torch_seeded(0)
def load(path: str | Path) -> Method | Backbone:
    """A trained model, in evaluation mode. Nothing in a file is ever run.

    Args:
        path: a run directory (its last checkpoint), a checkpoint, exported weights, a transformers folder of a
            ViTMAE, or a `.pth` file of the original MAE.

    Returns:
        The whole model, or the encoder alone if the file holds no decoder.

    Raises:
        InputError: nothing there, a file of another kind, or weights of another architecture.
    """
    path = Path(path)
    if is_hf_folder(path):
        model = load_hf_folder(path)
    elif path.suffix in SUFFIXES and not path.is_dir():
        model = read_mae_checkpoint(path)
    else:
        model = load_own(find_weights(path))
    return model.eval()


def load_whole(path: str | Path) -> Method:
    """As :func:`load`, where more than the encoder is needed.

    Raises:
        InputError: also when the file holds an encoder alone.
    """
    model = load(path)
    if not isinstance(model, Method):
        raise InputError(f"{path}: holds an encoder alone, and a decoder is needed; give the run directory")
    return model


def load_config(path: str | Path) -> MethodConfig:
    """What a trained model is made of; of this software's own files, without reading their weights.

    Raises:
        InputError: as :func:`load_whole`.
    """
    return load_whole(path).config if _is_foreign(Path(path)) else read_metadata(find_weights(path))[0]


def load_statistics(path: str | Path) -> ImageStatistics:
    """How the images of a trained model are normalised.

    A transformers folder says so in its preprocessor_config.json. Without one, and for an original `.pth` of MAE: by
    ImageNet's statistics for 3 channels, by 0.5 and 0.5 for another number and for BEiT's files.

    Raises:
        InputError: as :func:`load`.
    """
    path = Path(path)
    if is_hf_folder(path):
        return hf_statistics(path)
    if _is_foreign(path):
        model = read_mae_checkpoint(path)
        if isinstance(model, TokenMethod):
            return ImageStatistics(model.config.mean, model.config.std)
        return ImageStatistics(*default_mean_std(backbone_of(model).in_chans))
    return read_statistics(find_weights(path))


def _is_foreign(path: Path) -> bool:
    return is_hf_folder(path) or (path.suffix in SUFFIXES and not path.is_dir())
