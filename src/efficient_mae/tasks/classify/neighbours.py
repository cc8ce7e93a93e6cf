"""Classes of held-out images by their nearest training images, of which none is held.

Letters: B training images of a batch, N held-out images, D values of a feature, k neighbours, K classes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from efficient_mae.data import Source

# Scale of the similarities in a neighbour's vote (Wu et al. 2018, as DINO uses it).
TEMPERATURE = 0.07

# Values of the largest tensors that a search makes: 64 MiB of floats.
_VALUES = 2**24

Embed = Callable[[Tensor], Tensor]
Read = Callable[[Source], Iterable[tuple[Tensor, Tensor, Tensor]]]


class Neighbours:
    """The k nearest training features of each held-out one, by cosine, among all that were shown so far.

    Args:
        held_out: features, floats or bytes; searched on their device.
        k: neighbours.
    """

    def __init__(self, held_out: Shaped[Tensor, "N D"], k: int):
        self._held_out = held_out
        parts = held_out.split(max(1, _VALUES // held_out.shape[1]))
        self._length = torch.cat([part.float().norm(dim=1, keepdim=True) for part in parts])
        self._cosine = torch.full((len(held_out), k), -torch.inf, device=held_out.device)
        self._labels = torch.zeros((len(held_out), k), dtype=torch.int64, device=held_out.device)

    def show(self, train: Shaped[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> None:
        """Keep those of these training features, and of those kept so far, that are nearest."""
        k = self._cosine.shape[1]
        train = F.normalize(train.float(), dim=1)
        rows = max(1, _VALUES // max(train.shape[1], len(train) + k))
        for start in range(0, len(self._held_out), rows):
            part = slice(start, start + rows)
            # Divided afterwards: held-out features that are floats are then not copied.
            cosine = self._held_out[part].float() @ train.T / self._length[part].clamp_min(1e-12)
            known = torch.cat([self._labels[part], labels.expand(len(cosine), -1)], dim=1)
            self._cosine[part], index = torch.cat([self._cosine[part], cosine], dim=1).topk(k, dim=1)
            self._labels[part] = known.gather(1, index)

    def votes(self, classes: int) -> Float[Tensor, "N K"]:
        """The neighbours' votes for each class, on the host; a vote weighs exp(cosine / 0.07)."""
        weight = (self._cosine.cpu() / TEMPERATURE).exp()
        return torch.zeros(len(weight), classes).scatter_add_(1, self._labels.cpu(), weight)


@dataclass(frozen=True)
class KnnScore:
    """What a search found.

    Attributes:
        correct: held-out images whose class is their neighbours' choice, by kind of feature.
        train_images: that could be read.
        test_images: numbers of the held-out images that could be read, in their source.
    """

    correct: dict[str, int]
    train_images: int
    test_images: Int64[Tensor, " N"]

    def accuracy(self) -> dict[str, float]:
        """Share of the held-out images that are classified rightly, 0 to 1, by kind of feature."""
        return {name: count / len(self.test_images) for name, count in self.correct.items()}


@torch.no_grad()
def classify(train: Source, test: Source, embeds: Mapping[str, Embed], *, k: int, read: Read) -> KnnScore:
    """Classify held-out images by several kinds of features, in one pass over either part.

    Held are the held-out images' features.

    Args:
        train, test: labelled, as :func:`efficient_mae.data.open_labelled` gives them.
        embeds: by name, from uint8 images (B, C, h, w) to features (B, D).
        k: neighbours that vote; all training images where there are fewer.
        read: gives the images, labels and numbers of a source, in batches.
    """
    held: dict[str, Tensor] = {}
    labels, numbers, count = [], [], 0
    for images, classes, indices in read(test):
        for name, embed in embeds.items():
            features = embed(images)
            # Filled as it comes: to join batches would take all of it twice.
            whole = held.setdefault(name, features.new_empty(len(test), features.shape[1]))
            whole[count : count + len(images)] = features
        labels.append(classes.cpu())
        numbers.append(indices)
        count += len(images)
    neighbours = {name: Neighbours(features[:count], k) for name, features in held.items()}
    truth, seen = torch.cat(labels), 0
    for images, classes, _ in read(train):
        for name, found in neighbours.items():
            found.show(embeds[name](images), classes)
        seen += len(images)
    number = len(train.classes or ())
    correct = {name: int((found.votes(number).argmax(1) == truth).sum()) for name, found in neighbours.items()}
    return KnnScore(correct, seen, torch.cat(numbers))
