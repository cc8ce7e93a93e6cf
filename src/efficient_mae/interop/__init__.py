"""Reading and writing models: this software's own files, timm, transformers, the original MAE files, ONNX."""

from efficient_mae.interop.adapt import CHANNELS, adapt_encoder, adapt_statistics
from efficient_mae.interop.authors.mae import from_mae_checkpoint
from efficient_mae.interop.files import (
    Trained,
    encoder_of,
    find_optimizer,
    find_run_settings,
    find_weights,
    read_metadata,
    save_encoder,
)
from efficient_mae.interop.headers import ImageStatistics, file_metadata
from efficient_mae.interop.hf.vit_mae import from_hf, to_hf
from efficient_mae.interop.loading import (
    Description,
    describe_weights,
    load,
    load_config,
    load_statistics,
    load_whole,
    read_trained,
)
from efficient_mae.interop.starting import Start, start_from
from efficient_mae.interop.timm_models import load_snippet, to_timm

__all__ = [
    "CHANNELS",
    "Description",
    "ImageStatistics",
    "Start",
    "Trained",
    "adapt_encoder",
    "adapt_statistics",
    "describe_weights",
    "encoder_of",
    "file_metadata",
    "find_optimizer",
    "find_run_settings",
    "find_weights",
    "from_hf",
    "from_mae_checkpoint",
    "load",
    "load_whole",
    "load_config",
    "load_snippet",
    "load_statistics",
    "read_metadata",
    "read_trained",
    "save_encoder",
    "start_from",
    "to_hf",
    "to_timm",
]
