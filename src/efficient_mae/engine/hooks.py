"""What a task says of its runs: what is learned from what, and what is done besides."""

from abc import ABC, abstractmethod

import torch

from efficient_mae.data import Source, TrainDataset
from efficient_mae.data.images.reading import Reading
from efficient_mae.data.sources.describe import describe_images
from efficient_mae.engine.loop import TaskObjective
from efficient_mae.engine.optim import half_cosine
from efficient_mae.engine.settings import RunConfig


class Hooks(ABC):
    """What of :class:`efficient_mae.engine.run.Run`, where its attributes are told, is a task's to fill in."""

    config: RunConfig
    source: Source
    img_size: tuple[int, int]
    reading: Reading

    @abstractmethod
    def title(self) -> str:
        """What is done, for the first line that the user reads: `pre-training ... on ...`."""

    def images_become(self) -> str:
        """What the images are, and what is made of them, on one line."""
        return describe_images(
            self.source, self.reading, self.img_size, getattr(self.config, "crop_scale", None)
        ).text

    @abstractmethod
    def dataset(self) -> TrainDataset:
        """Makes the training batches."""

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """Of the parameters that are trained, which are on their device by now."""

    @abstractmethod
    def objective(self) -> TaskObjective:
        """What is minimised."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Header of the checkpoints' model file."""

    def begin(self) -> None:
        """Called after :meth:`prepare` where there is no checkpoint to load, on every process."""
        return

    def fall(self, progress: float) -> float:
        """Share of the highest learning rate at a point of training, from 0 at the end of the warm-up to 1."""
        return half_cosine(progress)

    def after_step(self) -> None:
        """Called after each optimiser step, on every process."""
        return

    def epoch_ended(self, epochs_done: float) -> None:
        """Called after each epoch, and at the end of training if that is within one, on every process.

        Again if the run is killed before its next checkpoint.
        """
        return

    def finished(self) -> None:
        """Called at the end, on every process: writes `results`."""
        return
