"""Pre-training: from a source of images to an encoder."""

import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from efficient_mae.data import (
    EvalTransform,
    PretrainTransform,
    ResumableBatchSampler,
    Source,
    TrainBatch,
    TrainDataset,
    UnreadableImage,
    make_train_loader,
    normalize,
    open_source,
)
from efficient_mae.engine.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    replace_file,
    save_checkpoint,
    step_of,
)
from efficient_mae.engine.distributed import Processes, join_processes
from efficient_mae.engine.logging import MetricsLog, say
from efficient_mae.engine.loop import Loop, Step
from efficient_mae.engine.machine import available_cores, describe_machine
from efficient_mae.engine.optim import BASE_BATCH_SIZE, build_adamw, learning_rate
from efficient_mae.engine.run_directory import DamageLog, claim_run_directory
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata, save_encoder
from efficient_mae.masking import plan_masks
from efficient_mae.models import MaskedAutoencoder
from efficient_mae.tasks.panels import draw_panel
from efficient_mae.tasks.pretrain_config import OPERATIONAL, PretrainConfig, ResolvedConfig, build_model, resolve

# Images of a panel.
PANEL_IMAGES = 6


def pretrain(config: PretrainConfig) -> Path:
    """Pre-train, or resume, until done; return the run directory.

    Raises:
        InputError: a setting that cannot work, unusable data, or a directory of another run.
        OSError: the disk is full; the last checkpoint is intact.
    """
    with join_processes(config.device) as processes:
        source = open_source(config.data, "train")
        resolved = resolve(config, len(source), processes.device)
        torch.manual_seed(resolved.seed)
        run = _Run(resolved, Path(resolved.out), source, build_model(resolved), processes)
        # Everything that can be refused has been by now: only then is anything written.
        claim_run_directory(run.out, dataclasses.asdict(resolved), OPERATIONAL, processes)
        if run.is_finished:
            if processes.is_main:
                say(f"{run.out} is finished: {run.total_steps} steps, {resolved.epochs} epochs")
        else:
            run.train()
    return run.out


@dataclass(frozen=True)
class Reconstruction:
    """The Difficulty-Flatten Loss over the predicted patches of the global batch (Eq. 2)."""

    statistics: ImageStatistics

    def weight(self, batch: TrainBatch) -> Tensor:
        """Sum of d ** -gamma over the batch's predicted patches."""
        return batch.masks.weights.sum()

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Sum of d ** -gamma times the error over the batch's predicted patches."""
        out = model(normalize(batch.images, self.statistics.mean, self.statistics.std), batch.masks)
        return (out.weights * out.patch_loss).sum()


class _Run:
    """A pre-training run: the parts of the engine, put together for this task."""

    def __init__(
        self,
        config: ResolvedConfig,
        out: Path,
        source: Source,
        model: MaskedAutoencoder,
        processes: Processes,
    ):
        self.config, self.out, self.source, self.model, self.processes = config, out, source, model, processes
        self.statistics = ImageStatistics(config.mean, config.std)
        self.transform = PretrainTransform(
            model.img_size, config.in_chans, scale=config.crop_scale, hflip=config.hflip
        )
        self.steps_per_epoch = self._sampler(0).steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch

    @property
    def is_finished(self) -> bool:
        """The last step's checkpoint and what is written after it are there."""
        checkpoints = find_checkpoints(self.out / "checkpoints")
        done = bool(checkpoints) and step_of(checkpoints[-1]) == self.total_steps
        return done and (self.out / "encoder.safetensors").exists()

    def train(self) -> None:
        """Train from the last checkpoint, or from the beginning, to the end."""
        config, model, processes = self.config, self.model, self.processes
        damage = DamageLog(self.out, len(self.source), processes)
        model.to(processes.device).set_grad_checkpointing(config.grad_checkpointing)
        self.optimizer = build_adamw(model, config.weight_decay)
        first_step = self._resume()
        metrics = MetricsLog(self.out, first_step) if processes.is_main else None
        step = Step(
            model=processes.wrap(model),
            optimizer=self.optimizer,
            objective=Reconstruction(self.statistics),
            processes=processes,
            learning_rate=partial(
                learning_rate,
                peak=config.base_lr * config.batch_size / BASE_BATCH_SIZE,
                warmup_steps=round(config.warmup_epochs * self.steps_per_epoch),
                total_steps=self.total_steps,
            ),
            precision=config.precision,
            clip_grad=config.clip_grad,
        )
        Loop(
            step=step,
            batches=iter(self._loader(first_step)),
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            accum_iter=config.accum_iter,
            batch_size=config.batch_size,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            save=self._save,
            on_damaged=damage.add,
            on_epoch_end=self._epoch_ended,
            metrics=metrics,
        ).run(first_step)
        if metrics:
            metrics.close()
            save_encoder(self.out / "encoder.safetensors", model, self.statistics)
            if damage.reasons:
                say(damage.summary())
        processes.barrier()

    def _sampler(self, first_step: int) -> ResumableBatchSampler:
        config = self.config
        return ResumableBatchSampler(
            len(self.source),
            config.batch_size,
            config.seed,
            accum_iter=config.accum_iter,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            start=first_step * config.accum_iter,
        )

    def _loader(self, first_step: int):
        config, model, device = self.config, self.model, self.processes.device
        dataset = TrainDataset(
            self.source,
            self.transform,
            config.seed,
            min_size=model.patch_size,
            num_patches=model.grid_size[0] * model.grid_size[1],
            make_masks=partial(plan_masks, **model.config.masking),
        )
        workers = 1 if device.type == "cpu" else min(12, available_cores())
        return make_train_loader(
            dataset,
            self._sampler(first_step),
            num_workers=workers if config.num_workers is None else config.num_workers,
            pin_memory=device.type == "cuda",
        )

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; return the number of steps done."""
        checkpoints = find_checkpoints(self.out / "checkpoints")
        if self.processes.is_main:
            machine = describe_machine(self.processes.device)
            replace_file(self.out / "machine.json", json.dumps(machine, indent=1).encode())
            say(
                f"pre-training {self.config.model} on {len(self.source):,} images: {self.config.epochs} epochs of "
                f"{self.steps_per_epoch} steps, {self.config.batch_size} images a step, "
                f"{self.config.precision} on {self.processes.device}"
            )
        if not checkpoints:
            return 0
        state = load_checkpoint(checkpoints[-1], self.model, self.optimizer)
        if state["num_samples"] != len(self.source):
            raise InputError(
                f"data={self.config.data} has {len(self.source)} images now and had {state['num_samples']} when "
                f"{self.out} was begun: give it back its data, or name another out"
            )
        if self.processes.is_main:
            say(f"resuming {self.out} after step {state['step']} of {self.total_steps}")
        return state["step"]

    def _save(self, steps_done: int) -> None:
        if self.processes.is_main:
            save_checkpoint(
                self.out / "checkpoints",
                steps_done,
                self.model,
                self.optimizer,
                state={"num_samples": len(self.source)},
                metadata=file_metadata(self.model.config, self.statistics),
                keep=self.config.keep_checkpoints,
            )
        self.processes.barrier()

    def _epoch_ended(self, epochs_done: int) -> None:
        config = self.config
        due = epochs_done % config.panel_every == 0 or epochs_done == config.epochs
        if not due or not self.processes.is_main:
            return
        images = self._panel_images.to(self.processes.device)
        layout = self.model.plan(len(images), generator=torch.Generator().manual_seed(config.seed))
        draw_panel(
            self.model,
            normalize(images, config.mean, config.std),
            layout,
            mean=config.mean,
            std=config.std,
            title=f"after epoch {epochs_done}",
            path=self.out / "figures" / f"panel-epoch-{epochs_done:04d}.png",
        )

    @cached_property
    def _panel_images(self) -> Tensor:
        """A few readable images, held-out ones if the source has them; uint8 (B, C, h, w)."""
        try:
            source = open_source(self.config.data, "test")
        except InputError:
            source = self.source
        transform = EvalTransform(self.model.img_size, self.config.in_chans)
        images = []
        for index in range(0, len(source), max(1, len(source) // PANEL_IMAGES)):
            with suppress(UnreadableImage):
                images.append(transform(source.image(index)))
        return torch.stack(images[:PANEL_IMAGES])
