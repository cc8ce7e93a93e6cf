"""Classifiers: an encoder with a head, as fine-tuning and linear probing leave them, in timm's model.

B images, C channels, h and w height and width in pixels, K classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import load_model, read_header
from efficient_mae.engine.storage.checksums import refuse_damage
from efficient_mae.engine.storage.durable import replace_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop.adapt import adapt_encoder, adapt_statistics
from efficient_mae.interop.files import find_weights, load_own
from efficient_mae.interop.headers import (
    PROBED,
    Head,
    ImageStatistics,
    TaskHeads,
    file_metadata,
    read_own_header,
)
from efficient_mae.methods import backbone_of


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        vit: from normalised images (B, C, h, w) to logits (B, K).
        encoder: that it has, without its numbers.
        head: says what becomes of the encoder's tokens, and the classes' names.
        statistics: of its images.
    """

    vit: Any
    encoder: Backbone
    head: Head
    statistics: ImageStatistics

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""
        return self.encoder.img_size

    @property
    def in_chans(self) -> int:
        """C."""
        return self.encoder.in_chans

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder.patch_size


def build_classifier(encoder: Backbone, head: Head, drop_path: float = 0.0) -> Any:
    """timm's model with such a head and the encoder's weights; what else it has is random.

    Raises:
        InputError: timm's model of this family has no such head.
    """
    made = encoder.classifier_arguments(len(head.classes), head.pool, head.fc_norm)
    model: Any = encoder.timm_class(**encoder.timm_arguments | made | {"drop_path_rate": drop_path})
    weights = encoder.state_dict()
    model.load_state_dict({name: weights.get(name, tensor) for name, tensor in model.state_dict().items()})
    return model


def hollow(encoder: Backbone) -> Backbone:
    """Another like it, without its numbers."""
    with torch.device("meta"):
        return encoder.resized()


@torch_seeded(0)
def load_classifier(path: str | Path) -> Classifier:
    """A trained classifier, in evaluation mode. Nothing in a file is ever run.

    Args:
        path: a run directory of fine-tuning or linear probing, one of fine-tuning's checkpoints, or an export of
            either for timm or transformers.

    Raises:
        InputError: nothing there, something that holds no classifier, or a damaged file.
    """
    head = find_head(path)
    file = find_weights(path) if head or not Path(path).exists() else None
    if head is None or file is None or any(name.startswith(PROBED) for name in read_header(file)[1]):
        raise InputError(
            f"{path}: holds no classifier; give a finished run of emae finetune or emae linear-probe (of a version "
            "that wrote down its classes), or what emae export made of one"
        )
    refuse_damage(file.parent, file.name)
    encoder = backbone_of(load_own(file))  # or it is refused
    vit = build_classifier(encoder, head)
    load_model(file, vit)
    return Classifier(vit.eval(), hollow(encoder), head, read_own_header(file).statistics)


def find_head(path: str | Path) -> Head | None:
    """The head of the classifier at a path; None where there is none."""
    try:
        return read_own_header(find_weights(path)).head
    except InputError:
        return None


def find_heads(path: str | Path) -> TaskHeads | None:
    """What the model of another task at a path has; None where there is none."""
    try:
        return read_own_header(find_weights(path)).heads
    except InputError:
        return None


def save_classifier(file: Path, classifier: Classifier) -> None:
    """Write a classifier under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    metadata = file_metadata(classifier.encoder, classifier.statistics, classifier.head)
    replace_tensors(file, classifier.vit.state_dict(), metadata)


@torch_seeded(0)
def adapt_classifier(
    classifier: Classifier,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    channels: str | None = None,
) -> Classifier:
    """A classifier for other images; see :func:`efficient_mae.interop.adapt_encoder`, whose arguments it takes.

    Raises:
        InputError: as for an encoder.
    """
    weights = classifier.vit.state_dict()
    encoder = classifier.encoder.resized()
    encoder.load_state_dict({name: weights.get(name, old) for name, old in encoder.state_dict().items()})
    adapted = adapt_encoder(encoder, img_size, patch_size, in_chans, channels)
    vit, changed = build_classifier(adapted, classifier.head), adapted.state_dict()
    vit.load_state_dict({name: changed.get(name, old) for name, old in weights.items()})
    statistics = adapt_statistics(classifier.statistics, adapted.in_chans, channels)
    return replace(classifier, vit=vit.eval(), encoder=hollow(adapted), statistics=statistics)
