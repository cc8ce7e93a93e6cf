"""Other libraries' implementations of a method, which `emae bench step --peers` times beside ours."""

import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.bench.contenders import Contender, image_statistics, images_of, training_step
from efficient_mae.data import TrainBatch, normalize
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, to_hf
from efficient_mae.methods import MethodConfig
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder
from efficient_mae.methods.mae.config import EFFICIENT_RATIOS, MAE_MASK_RATIO


@dataclass(frozen=True)
class PeerLoss:
    """Another implementation's own loss, which is a mean over a batch of one size."""

    statistics: ImageStatistics

    def weight(self, batch: TrainBatch) -> Tensor:
        """One; filled in on the images' device."""
        return torch.ones((), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """The loss."""
        return model(normalize(batch.images, self.statistics.mean, self.statistics.std)).loss


def peer_contenders(
    config: MethodConfig,
    batch_size: int,
    device: torch.device,
    precision: str,
    wanted: Collection[str],
    number: int | None = None,
) -> list[Contender]:
    """Other implementations that are installed, with the same optimiser, or the one of a number (none if fewer).

    Args:
        wanted: parts of names, of which theirs contain one.

    Raises:
        InputError: there is none at all, or none of such a name.
    """
    config = config.baseline()
    if not isinstance(config, MAEConfig):
        raise _none(config)
    batch = TrainBatch(images_of(config, batch_size), torch.arange(batch_size), None, []).to(device)
    if not (installed := _peers(config)):
        raise _none(config)
    peers = [(name, make) for name, make in installed.items() if any(part in name for part in wanted)]
    if not peers:
        raise InputError(f"peers={list(wanted)}: no name contains one of these; there are {', '.join(installed)}")
    contenders = []
    for name, make in peers if number is None else peers[number : number + 1]:
        # stable-pretraining tells on stdout what it does; there --json has one document and nothing else.
        with torch_seeded(0), redirect_stdout(sys.stderr):
            model = make()
        step = training_step(model.to(device).train(), PeerLoss(image_statistics(config)), device, precision)
        contenders.append(Contender(name, _gmacs(name, config), step, [batch]))
    return contenders


def _none(config: MethodConfig) -> InputError:
    return InputError(
        f"peers=true: no other implementation of {config.method} is installed; pip install 'efficient-mae[hub]'"
    )


def _peers(config: MAEConfig) -> dict[str, Callable[[], nn.Module]]:
    peers: dict[str, Callable[[], nn.Module]] = {}
    if find_spec("transformers"):
        peers[f"transformers ViTMAE {MAE_MASK_RATIO:.2f}"] = lambda: to_hf(MaskedAutoencoder(config))
    if find_spec("stable_pretraining"):
        peers[f"stable-pretraining MAE {MAE_MASK_RATIO:.2f}"] = lambda: _stable("MAE", config)
        for one in (config, replace(config, mask_ratio=EFFICIENT_RATIOS[0])):
            peers[f"stable-pretraining CrossMAE {one.mask_ratio:.2f}"] = partial(_stable, "CrossMAE", one)
    return peers


def _stable(method: str, config: MAEConfig) -> nn.Module:
    """stable-pretraining's MAE or CrossMAE around timm's encoder of the same sizes, with the same decoder's."""
    from stable_pretraining import methods as theirs  # pyright: ignore[reportMissingImports]
    from timm.models import VisionTransformer

    encoder = VisionTransformer(**config.backbone, num_classes=0)
    settings: dict[str, Any] = {
        "decoder_embed_dim": config.decoder_embed_dim,
        "decoder_depth": config.decoder_depth,
        "decoder_num_heads": config.decoder_num_heads,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
    }
    if method == "CrossMAE":
        settings |= {"image_size": config.img_size[0], "in_channels": config.in_chans}
    return getattr(theirs, method)(encoder, **settings)


def _gmacs(name: str, config: MAEConfig) -> float:
    """As the paper counts MAE, which is what these compute; CrossMAE's decoder is another, and isn't counted."""
    return float("nan") if "CrossMAE" in name else config.paper_gmacs()
