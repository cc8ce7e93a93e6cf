"""A training run: the parts of the engine, put together in the one way that every task shares.

A task is a subclass of :class:`Run` that says what is learned from what; claiming the directory, resuming, the loop,
its logs and its checkpoints are here.
"""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from efficient_mae.console import say
from efficient_mae.data import ResumableBatchSampler, Source, TrainBatch, TrainDataset, make_train_loader
from efficient_mae.engine.faults.nonfinite import SkipLog
from efficient_mae.engine.faults.preemption import StopRequests
from efficient_mae.engine.faults.rollback import Rollbacks
from efficient_mae.engine.hooks import Hooks
from efficient_mae.engine.logging import MetricsLog
from efficient_mae.engine.loop import Loop, Step
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.machine.facts import usual_workers
from efficient_mae.engine.machine.memory import BatchMemory, explain_out_of_memory
from efficient_mae.engine.machine.parallel import Skeleton, parallelize, shard
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.engine.opening import say_what_is_done, say_where_it_goes_on
from efficient_mae.engine.optim import BASE_BATCH_SIZE, learning_rate
from efficient_mae.engine.settings import OPERATIONAL, RunConfig, check_division
from efficient_mae.engine.storage import checkpoint
from efficient_mae.engine.storage.checksums import last_whole
from efficient_mae.engine.storage.damage_log import DamageLog
from efficient_mae.engine.storage.data_record import DataRecord, other_images
from efficient_mae.engine.storage.run_directory import SETTINGS, claimed_run_directory
from efficient_mae.engine.timetable import Timetable
from efficient_mae.errors import DivergedError, InputError


class Run(Hooks):
    """A run of a task: everything that can be refused is refused when it is made, before anything is written.

    Attributes:
        task: name under which it is registered (:mod:`efficient_mae.tasks.registry`) and recorded.
        operational: settings that may differ when the run is resumed.
        results: files that are written when the run is finished, besides the last checkpoint.
        unit: images that the model takes at a time, if that isn't all of a micro-batch; else a few.
        multiple: what the number of a micro-batch's images is a multiple of.
        graphs, draws: whether blocks are replayed as CUDA graphs; whether each process draws numbers within a step.
        source: training images.
        img_size, reading: (height, width) in pixels of what the model takes, and how images are read for it.
        model: what is trained, or holds what is trained.
        companions: modules that are saved and resumed beside the model, by name.
        epochs: that training takes, in whole steps.
        rollbacks: times that the run went back.
        metrics: where figures are logged; None before `execute` and for all but the main process.
    """

    task: ClassVar[str]
    operational: Collection[str] = OPERATIONAL
    results: ClassVar[Collection[str]] = ()
    unit: int = 8
    multiple: int = 1
    graphs, draws = False, False

    def __init__(self, config: RunConfig, source: Source, model: nn.Module, processes: Processes):
        """
        Args:
            config: the settings, with everything settled (:func:`efficient_mae.engine.settings.settle`).

        Raises:
            InputError: the global batch is larger than the data set or cannot be divided evenly, or training would be
                shorter than a step.
        """
        if config.batch_size is None or config.warmup_epochs is None:
            raise ValueError("batch_size and warmup_epochs must be settled before a run is made")
        self.config, self.source, self.model, self.processes = config, source, model, processes
        self.out = Path(config.out)
        self.batch_size, self.warmup_epochs = config.batch_size, config.warmup_epochs
        self.companions: dict[str, nn.Module] = {}
        self.metrics: MetricsLog | None = None
        self.rollbacks = Rollbacks(self.out)
        self._skeleton: Skeleton | None = None
        self._data = DataRecord.of(source)
        check_division(config.batch_size, config.accum_iter, processes.world_size, len(source))
        self.steps_per_epoch = self._sampler(0).steps_per_epoch
        self.total_steps = round(config.epochs * self.steps_per_epoch)
        if not self.total_steps:
            raise InputError(f"epochs={config.epochs}: is less than a step; an epoch has {self.steps_per_epoch}")
        self.epochs = self.total_steps / self.steps_per_epoch

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the model only."""
        return self.config.parallel == "fsdp" and self.processes.world_size > 1

    def whole(self, module: nn.Module, wanted: bool = True) -> nn.Module:
        """The model, or a companion of its shape, as an ordinary module; every process calls this.

        Args:
            module: comes back as it is unless it is sharded; then a copy does, with whole tensors.
            wanted: whether this process will use it; where it won't, it isn't worth the memory.
        """
        return module if self._skeleton is None else self._skeleton.fill(module, wanted)

    @property
    def is_finished(self) -> bool:
        """The last step's checkpoint and the results are there."""
        steps = map(checkpoint.step_of, checkpoint.find_checkpoints(self.out / "checkpoints"))
        done = max(steps, default=-1) >= self.total_steps
        return done and all((self.out / name).exists() for name in self.results)

    def execute(self) -> None:
        """Claim the directory, then train from the last checkpoint, or from the beginning, to the end.

        Raises:
            InputError: a directory of another run, or data that changed or turned out unusable.
            DivergedError: too many losses or gradients, or the weights, are not finite; the last checkpoint is good.
            Stopped: by a signal, after a checkpoint.
            OSError: the disk is full; the last checkpoint is intact.
        """
        self.dataset()[0, 0]  # or refuse, before anything is written
        self._was_there = (self.out / SETTINGS).is_file()
        claim = self.out, self.task, self.config, self.operational, self.processes
        with claimed_run_directory(*claim, self._data) as self._data:
            if not self.is_finished:
                stop = StopRequests(self.processes)
                with stop.noted():
                    self._train(stop)
            elif self.processes.is_main:
                say(f"{self.out} is finished: {self.total_steps} steps, {self.config.epochs} epochs")

    def prepare(self) -> Step:
        """Put the model, its companions and its optimiser where they are trained; return what does a step."""
        config, processes = self.config, self.processes
        self._skeleton = Skeleton(self.model) if self.is_sharded else None
        self.model.train()
        model = parallelize(
            self.model, processes, parallel=config.parallel, precision=config.precision, compile=config.compile
        )
        for companion in self.companions.values():
            companion.to(processes.device)
            if self.is_sharded:
                shard(companion, processes, config.precision)
        self._optimizer = self.build_optimizer()
        return Step(
            model=model,
            optimizer=self._optimizer,
            objective=self.objective(),
            processes=processes,
            learning_rate=partial(
                learning_rate,
                peak=config.base_lr * self.batch_size / BASE_BATCH_SIZE,
                warmup_steps=round(self.warmup_epochs * self.steps_per_epoch),
                total_steps=self.total_steps,
                lowest=config.min_lr,
                fall=self.fall,
            ),
            precision=config.precision,
            clip_grad=config.clip_grad,
            seed=config.seed,
            after=self.after_step,
        )

    def _train(self, stop: StopRequests) -> None:
        damage = DamageLog(self.out, self.source, self.processes, self.host_dataset().reads)
        plain = hollow(self.model, torch.device("meta"))
        step = self.prepare()
        data = {"dataset": self.host_dataset(), "num_workers": self.num_workers, "graphs": self.graphs}
        batch = {"unit": self.unit, "multiple": self.multiple, "accumulates": "accum_iter" in self.operational}
        memory = BatchMemory(self.config, self.processes, self._optimizer, plain, step.objective, **data, **batch)
        with explain_out_of_memory(memory):
            memory.check()
            while True:
                try:
                    self._train_from(self._resume(), step, damage, stop)
                    break
                except DivergedError as error:
                    self.rollbacks.go_back(error, self.config.rollbacks, self.processes)
        self.finished()
        damage.say_summary()
        self.processes.barrier()

    def _train_from(self, first_step: int, step: Step, damage: DamageLog, stop: StopRequests) -> None:
        config, processes = self.config, self.processes
        self.metrics = MetricsLog(self.out, first_step) if processes.is_main else None
        # Not kept: it would keep this run, and its workers until memory is next looked through.
        skips = SkipLog(first_step, config, self.source, self.pairs, self.rollbacks, processes)
        loop = Loop(
            step=step,
            batches=self.batches(first_step),
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            accum_iter=config.accum_iter,
            batch_size=self.batch_size,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            timetable=Timetable(60 * config.checkpoint_minutes),
            save=partial(self._save, skips),
            on_damaged=damage.add,
            on_skipped=skips.add,
            on_epoch_end=self.epoch_ended,
            requests=stop,
            metrics=self.metrics,
        )
        try:
            loop.run(first_step)
        finally:
            if self.metrics:
                self.metrics.close()

    def host_dataset(self) -> TrainDataset:
        """:meth:`dataset`, whose batches are made on the host to the end."""
        return self.dataset()

    def _sampler(self, first_step: int) -> ResumableBatchSampler:
        return ResumableBatchSampler(
            len(self.source),
            self.batch_size,
            self.config.seed,
            repeats=self.repeats,
            accum_iter=self.config.accum_iter,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            start=first_step * self.config.accum_iter,
            passed_over=self.rollbacks.passed_over,
        )

    def pairs(self, first_step: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, index) of each sample of this process' micro-batches, without end, from a step on."""
        return iter(self._sampler(first_step))

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """This process' micro-batches, without end, from a step on."""
        loader = make_train_loader(
            self.dataset(),
            self._sampler(first_step),
            num_workers=self.num_workers,
            timeout=self.config.data_timeout,
            pin_memory=self.processes.device.type == "cuda",
        )
        return iter(loader)

    @property
    def repeats(self) -> int:
        """Samples of an image in a micro-batch."""
        return 1

    @property
    def num_workers(self) -> int:
        """Processes that read images for this one."""
        given = self.config.num_workers
        return usual_workers(self.processes.device) if given is None else given

    def _resume(self) -> int:
        """Load the last checkpoint that is whole, if there is any; return the number of steps done."""
        last, damaged = last_whole(checkpoint.find_checkpoints(self.out / "checkpoints"), self.processes)
        if self.processes.is_main and self.metrics is None:  # the first time
            say_what_is_done(self, nothing_to_resume=self._was_there and last is None)
        if last is None:
            self.begin()
            return 0
        step = self.restore(last, [one["images"] for one in self._data.before])
        if self.processes.is_main:
            say_where_it_goes_on(self, step, damaged)
        return step

    def restore(self, folder: Path, accepted: Collection[int] = ()) -> int:
        """Load a checkpoint; return the number of steps done.

        Args:
            accepted: numbers of images that the data set may have had by then.

        Raises:
            InputError: it is of another architecture, or of other data.
        """
        state = checkpoint.load_checkpoint(folder, self.model, self._optimizer, self.companions)
        if state["num_samples"] not in (now := len(self.source), *accepted):
            raise other_images(self.config.data, now, state["num_samples"], self.out)
        return state["step"]

    def _save(self, skips: SkipLog, steps_done: int) -> None:
        skips.check_weights(steps_done, {"model": self.model, **self.companions}, self._optimizer)
        checkpoint.save_checkpoint(
            self.out / "checkpoints",
            steps_done,
            self.model,
            self._optimizer,
            state={"num_samples": len(self.source)},
            metadata=self.metadata(),
            keep=self.config.keep_checkpoints,
            companions=self.companions,
            processes=self.processes,
            spared=skips.spared,
        )
        self.processes.barrier()
