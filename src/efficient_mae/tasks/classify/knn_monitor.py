"""k-NN accuracy of an encoder while it is being pre-trained."""

from functools import partial

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.data import DataChoice, open_labelled, spread
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.classify.neighbours import classify
from efficient_mae.tasks.features import embed, labelled_batches

# Images looked at, at most: enough to tell one percent from another, and a small part of an epoch.
MOST_TRAIN = 10_000
MOST_TEST = 2_000
NEIGHBOURS = 20


class KnnMonitor:
    """Classifies held-out images by their nearest neighbours among training images, as `emae knn` does.

    Args:
        data: names a labelled source with a held-out part.
        choice: of what the data hold.
        statistics: by which images are normalised.
        batch_size: images at a time.
        device: that the encoder is on.
        precision: `bf16` or `fp32`.
        num_workers: processes that read images.

    Raises:
        InputError: the data have no labels or no held-out part.
    """

    def __init__(
        self,
        data: str,
        choice: DataChoice,
        statistics: ImageStatistics,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
        num_workers: int,
    ):
        try:
            labelled = open_labelled(data, choice=choice)
        except InputError as error:
            raise InputError(f"knn_every needs labels and a held-out part (or set it to null): {error}") from None
        self._train, self._test = spread(labelled.train, MOST_TRAIN), spread(labelled.test, MOST_TEST)
        self._statistics, self._device, self._precision = statistics, device, precision
        self._batch_size, self._num_workers = batch_size, num_workers
        self._damaged: dict[str, str] = {}

    def __call__(self, encoder: Backbone) -> float:
        """Top-1 accuracy, 0 to 1; the encoder is left in the mode that it was in.

        Raises:
            InputError: too many of the images can't be read.
        """
        training = encoder.training
        encoder.eval()
        read = partial(
            labelled_batches,
            encoder=encoder,
            reading=self._statistics.reading,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            device=self._device,
            damaged=self._damaged,
        )
        features = partial(embed, encoder, statistics=self._statistics, precision=self._precision)
        try:
            score = classify(self._train, self._test, {"knn": features}, k=NEIGHBOURS, read=read)
        except InputError as error:
            raise InputError(f"{error} (or set knn_every to null)") from None
        encoder.train(training)
        return score.accuracy()["knn"]
