"""What can be trained, by the name that the command line, `emae replay` and a run's `config.yaml` share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from efficient_mae.command import Command, Result, resolve

if TYPE_CHECKING:  # they load torch, for which `emae --help` need not wait
    import efficient_mae.engine.machine.distributed
    import efficient_mae.engine.run


PREPARE = "engine.machine.own_process:prepare"


@dataclass(frozen=True, kw_only=True)
class RunResult(Result):
    """A run that is done.

    Attributes:
        run: its directory.
    """

    run: str


def train(task: "Task", config: Any) -> RunResult:
    """Begin a run of a task, or resume it, until done.

    Raises:
        InputError, DivergedError, Stopped, OSError: see :meth:`efficient_mae.engine.run.Run.execute`.
    """
    from efficient_mae.engine.machine.distributed import join_processes

    with join_processes(config.device) as processes:
        run = task.make(config, processes)
        run.execute()
    return RunResult(run=str(run.out))


def show_run(result: RunResult, console: Console) -> None:
    """Print where the run is."""
    console.print(f"run: {result.run}", markup=False)


@dataclass(frozen=True, kw_only=True)
class Task(Command):
    """A subcommand that trains: it begins a run or resumes it, and `emae replay` does a step of it again.

    Attributes:
        name: of the subcommand, and in the `config.yaml` of its runs; their :attr:`Run.task`.
        maker: from settings (as given: it settles them) and processes to a run.
        function: from settings; where no more is to be done than :func:`train` does, not given.
        replays_alone: one process may do again a step that several did: what a sample adds to the loss depends
            neither on the others of its micro-batch nor on what a process draws within the step.
    """

    name: str
    maker: str | Callable[..., Any]
    function: str | Callable[..., Result] = train
    display: str | Callable[..., None] = show_run
    preparation: str = PREPARE
    replays_alone: bool = False

    @property
    def run(self) -> Callable[[Any], Result]:
        return partial(train, self) if self.function is train else super().run

    def make(
        self, config: Any, processes: "efficient_mae.engine.machine.distributed.Processes"
    ) -> "efficient_mae.engine.run.Run":
        """A run of these settings, not begun.

        Raises:
            InputError: a setting that cannot work, or unusable data.
        """
        run = resolve(self.maker)(config, processes)
        if run.task != self.name:
            raise ValueError(f"the task {self.name!r} makes runs whose task is {run.task!r}")
        return run


TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make a task known under its name.

    Raises:
        ValueError: there is one of that name.
    """
    if task.name in TASKS:
        raise ValueError(f"there is a task {task.name!r} already")
    TASKS[task.name] = task


register(
    Task(
        name="pretrain",
        settings="tasks.pretrain_config:PretrainConfig",
        maker="tasks.pretrain:make_pretrain_run",
        function="report.command:pretrain_and_report",
        display="report.command:show_pretrain",
        help="pre-train an encoder on images; the same command again resumes",
        replays_alone=True,
    )
)
register(
    Task(
        name="linear-probe",
        settings="tasks.classify.linear_probe:LinearProbeConfig",
        maker="tasks.classify.linear_probe:LinearProbeRun.make",
        function="tasks.classify.linear_probe:linear_probe",
        display="tasks.classify.result:show_classifier",
        help="train a linear head on a frozen encoder, and judge it",
    )
)
register(
    Task(
        name="finetune",
        settings="tasks.classify.finetune:FinetuneConfig",
        maker="tasks.classify.finetune:FinetuneRun.make",
        function="tasks.classify.finetune:finetune",
        display="tasks.classify.result:show_classifier",
        help="train an encoder and a head with labels, and judge them",
    )
)
register(
    Task(
        name="segment",
        settings="tasks.segment.config:SegmentConfig",
        maker="tasks.segment.run:SegmentRun.make",
        function="report.predictions:segment_and_report",
        display="tasks.segment.result:show_segment",
        help="train an encoder and UPerNet with label maps, and judge them",
    )
)
register(
    Task(
        name="detect",
        settings="tasks.detect.config:DetectConfig",
        maker="tasks.detect.run:DetectRun.make",
        function="report.predictions:detect_and_report",
        display="tasks.detect.result:show_detect",
        help="train an encoder and Mask R-CNN with boxes and masks, and judge them",
    )
)
register(
    Task(
        name="tokenizer",
        settings="tasks.tokenizer:TokenizerConfig",
        maker="tasks.tokenizer:make_tokenizer_run",
        function="report.tokenizer:tokenizer_and_report",
        display="report.tokenizer:show_tokenizer",
        help="train the tokenizer whose words BEiT and CAE learn",
        replays_alone=True,
    )
)
