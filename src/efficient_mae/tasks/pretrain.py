"""Pre-training: from a source of images to an encoder."""

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from efficient_mae.backbones import VisionTransformer
from efficient_mae.console import say
from efficient_mae.data import (
    DeviceDecodeDataset,
    EvalTransform,
    PretrainTransform,
    Source,
    TrainBatch,
    TrainDataset,
    common_size,
    normalize,
    open_source,
)
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.cuda_graphs import graph_blocks
from efficient_mae.engine.machine.distributed import Processes, join_processes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.checkpoint import find_part
from efficient_mae.engine.storage.run_directory import SETTINGS, read_settings
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, Start, file_metadata, read_metadata, save_encoder
from efficient_mae.interop.timm_models import describe_run
from efficient_mae.masking import MaskSettings
from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.methods import Method, MethodConfig, Output, Plan
from efficient_mae.tasks.classify.knn_monitor import KnnMonitor
from efficient_mae.tasks.left_out import readable_images
from efficient_mae.tasks.panels import draw_panel
from efficient_mae.tasks.pretrain_config import OPERATIONAL, PretrainConfig
from efficient_mae.tasks.pretrain_start import begin_with, build_start

# Images of a panel.
PANEL_IMAGES = 6


def pretrain(config: PretrainConfig) -> Path:
    """Pre-train, or resume, until done; return the run directory.

    Raises:
        InputError: a setting that cannot work, unusable data, or a directory of another run.
        DivergedError: too many losses or gradients, or the weights, are not finite; the last checkpoint is good.
        OSError: the disk is full; the last checkpoint is intact.
    """
    with join_processes(config.device) as processes:
        run = make_pretrain_run(config, processes)
        run.execute()
    return run.out


def make_pretrain_run(config: PretrainConfig, processes: Processes) -> "PretrainRun":
    """A run of these settings, with random weights or those that it starts from.

    Raises:
        InputError: a setting that cannot work, or unusable data or weights.
    """
    source = open_source(config.data, "train", config)
    resolved, model, start = build_start(config, source, processes.device)
    model.check_ready()
    if processes.is_main:
        _tell_of_earlier_p2dist(Path(resolved.out), model.config)
    return PretrainRun(resolved, source, model, processes, start)


def _tell_of_earlier_p2dist(out: Path, model: MethodConfig) -> None:
    """Say that a run was perhaps begun with another P2Dist than it goes on with."""
    measures = isinstance(model, MaskSettings) and (model.beta is not None or model.gamma > 0)
    there = measures and model.patch_size != BETA_PATCH_SIZE and (out / SETTINGS).is_file()
    if there and read_settings(out).version is None:
        say(
            f"{out}: begun by an early version, whose P2Dist at patch size {model.patch_size} may have been another "
            "than today's (docs/results.md): to compare, begin it anew"
        )


@dataclass(frozen=True)
class MethodObjective:
    """A method's weighted mean of errors over the global batch; of Efficient MAE, Eq. 2."""

    statistics: ImageStatistics

    def weight(self, batch: TrainBatch) -> Tensor:
        """Sum of the weights of the batch's terms."""
        return _plan(batch).weights.sum()

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Sum of weight times error over the batch's terms."""
        return self._output(model, batch).weighted_sum

    def sample_sums(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """The same over each image's terms, (B,)."""
        out = self._output(model, batch)
        return out.errors.new_zeros(len(batch.images)).index_add(0, out.plan.images, out.plan.weights * out.errors)

    def _output(self, model: nn.Module, batch: TrainBatch) -> Output:
        return model(normalize(batch.images, self.statistics.mean, self.statistics.std), _plan(batch))


def _plan(batch: TrainBatch) -> Plan:
    if batch.masks is None:
        raise ValueError("images without a plan reached a method that needs one")
    return batch.masks.value


class PretrainRun(Run):
    """What pre-training adds to the engine."""

    task = "pretrain"
    operational = OPERATIONAL
    results = ("encoder.safetensors",)
    config: PretrainConfig
    model: Method

    def __init__(
        self,
        config: PretrainConfig,
        source: Source,
        model: Method,
        processes: Processes,
        start: Start | None = None,
    ):
        """
        Args:
            model: with the weights that it starts from.
            start: where these are from; see :func:`~efficient_mae.tasks.pretrain_start.build_start`.
        """
        self.draws = model.config.draws
        alone = processes.device.type == "cuda" and processes.world_size == 1
        possible = alone and not config.grad_checkpointing and not self.draws
        if config.cuda_graphs is True and not possible:
            raise InputError("cuda_graphs=true: needs a GPU, one process, grad_checkpointing=false and no drop path")
        own = isinstance(model.backbone, VisionTransformer) or config.cuda_graphs is True
        self.graphs = possible and own and config.cuda_graphs is not False
        if config.compile == "auto" and not self.graphs:
            # Compiled blocks then keep a GPU's host longer than plain ones (benchmarks/results/gpu).
            config = replace(config, compile=False)
        super().__init__(config, source, model, processes)
        self._start = start
        self.operational = (*OPERATIONAL, *model.operational)
        model.set_grad_checkpointing(config.grad_checkpointing)
        self.unit, self.multiple = model.config.unit(processes.device) or self.unit, config.repeats
        statistics = ImageStatistics(cast(tuple, config.mean), cast(tuple, config.std), common_size(source))
        self.img_size, self.reading = model.config.img_size, config.settled_reading(model.config.in_chans)
        self.statistics = statistics.read_by(self.reading)
        self.transform = PretrainTransform(self.img_size, self.reading, scale=config.crop_scale, hflip=config.hflip)
        self._knn = None if config.knn_every is None else self._knn_monitor()

    @property
    def repeats(self) -> int:
        return self.config.repeats

    def title(self) -> str:
        return f"pre-training {self.config.model} on {len(self.source):,} images"

    def dataset(self) -> TrainDataset:
        return self._dataset(DeviceDecodeDataset if self.config.decode_device == "cuda" else TrainDataset)

    def host_dataset(self) -> TrainDataset:
        return self._dataset(TrainDataset)

    def _dataset(self, kind: type[TrainDataset]) -> TrainDataset:
        model = self.model.config
        return kind(
            self.source,
            self.transform,
            self.config.seed,
            min_size=model.patch_size,
            num_patches=model.grid_size[0] * model.grid_size[1],
            # The gradients of sharded blocks are gathered by hooks of their own.
            make_masks=model.planner(None if self.is_sharded else model.unit(self.processes.device)),
            epochs=math.ceil(self.config.epochs),
        )

    def prepare(self) -> Step:
        step = super().prepare()
        if self.graphs:
            graph_blocks(self.model.backbone, accumulates=self.config.accum_iter > 1)
        return step

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_adamw(self.model, self.config.weight_decay, self.config.betas)

    def objective(self) -> MethodObjective:
        return MethodObjective(self.statistics)

    def begin(self) -> None:
        begin_with(self.config, self._start, self.model, self._optimizer, self.processes.is_main)

    def metadata(self) -> dict[str, str]:
        return file_metadata(self.model.config, self.statistics)

    def restore(self, folder: Path, accepted: Collection[int] = ()) -> int:
        theirs, ours = read_metadata(find_part(folder, "model"))[0].to_dict(), self.model.config.to_dict()
        different = [
            f"{name} {theirs.get(name)!r} there, {ours.get(name)!r} here"
            for name in sorted(theirs.keys() | ours.keys())
            if name not in self.operational and theirs.get(name) != ours.get(name)
        ]
        if different:
            raise InputError(f"out={self.out} holds a run of another model: {'; '.join(different)}")
        return super().restore(folder, accepted)

    def after_step(self) -> None:
        self.model.after_step()

    def finished(self) -> None:
        model = self._whole_model()
        if self.processes.is_main:
            file = self.out / "encoder.safetensors"
            describe_run(file, model.backbone.state_dict(), model.backbone, self.statistics)
            save_encoder(file, model, self.statistics)

    def epoch_ended(self, epochs_done: float) -> None:
        config = self.config
        last = epochs_done == self.epochs
        panel = epochs_done % config.panel_every == 0 or last
        knn = config.knn_every is not None and (epochs_done % config.knn_every == 0 or last)
        if not (knn or panel):
            return
        model = self._whole_model()
        if self.processes.is_main:
            if knn:
                self._log_knn(model, epochs_done)
            if panel:
                self._draw_panel(model, epochs_done)

    def _whole_model(self) -> Method:
        """The model as the main process can use it by itself; every process calls this."""
        return cast(Method, self.whole(self.model, wanted=self.processes.is_main))

    def _draw_panel(self, model: Method, epochs_done: float) -> None:
        config = self.config
        images = self._panel_images.to(self.processes.device)
        if not len(images):
            say(f"epoch {epochs_done:g}: no picture, for none of the images looked at can be read")
            return
        plan = model.plan(len(images), generator=torch.Generator().manual_seed(config.seed))
        draw_panel(
            model,
            normalize(images, self.statistics.mean, self.statistics.std),
            plan,
            self.statistics,
            colours=config.show_bands,
            title=f"after epoch {epochs_done:g}",
            path=self.out / "figures" / f"panel-epoch-{epochs_done:04g}.png",
        )

    def _knn_monitor(self) -> KnnMonitor:
        micro = self.batch_size // (self.config.accum_iter * self.processes.world_size)
        return KnnMonitor(
            self.config.data,
            self.config,
            self.statistics,
            batch_size=micro,
            device=self.processes.device,
            precision=self.config.precision,
            num_workers=self.num_workers,
        )

    def _log_knn(self, model: Method, epochs_done: float) -> None:
        """Log the encoder's k-NN accuracy in a row of its own."""
        if self._knn is not None and self.metrics is not None:
            accuracy = self._knn(model.backbone)
            step = round(epochs_done * self.steps_per_epoch)
            self.metrics.write({"step": step, "epoch": epochs_done, "knn": accuracy})
            say(f"epoch {epochs_done:g}: k-NN accuracy {accuracy:.2%}")

    @cached_property
    def _panel_images(self) -> Tensor:
        """A few readable images, held-out ones if the source has them; (B, C, h, w), B perhaps 0."""
        transform, images = EvalTransform(self.img_size, self.reading), list[Tensor]()
        with suppress(InputError):  # there are none
            images = readable_images(open_source(self.config.data, "test", self.config), transform, PANEL_IMAGES)
        images = images or readable_images(self.source, transform, PANEL_IMAGES)
        return torch.stack(images) if images else torch.empty(0, *transform.shape)
