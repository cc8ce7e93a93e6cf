"""What `emae` can do: of each subcommand its settings, its function, and how its result is shown.

They are named here and imported when they are asked for, so that `emae --help` need not wait for torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from rich.console import Console

from efficient_mae.ranges import Settings


@dataclass(frozen=True)
class Command:
    """A subcommand; what it consists of is given as `module:name` within this package.

    Attributes:
        settings: dataclass of :class:`efficient_mae.ranges.Settings`; each of its fields is a flag.
        function: does it, and returns what `--json` prints.
        display: prints that for a person.
        help: one line.
        preparation: tells the process, which is the command's alone, what suits it on a device.
    """

    settings: str
    function: str
    display: str
    help: str
    preparation: str = ""

    @property
    def config(self) -> type[Settings]:
        """The dataclass of its settings."""
        return self.config_of(None)

    def config_of(self, model: str | None) -> type[Settings]:
        """The same for a model of this name, or for the usual one, if the settings are such as make a model."""
        declared = _resolve(self.settings)
        return declared.of(declared.model if model is None else model) if hasattr(declared, "of") else declared

    @property
    def run(self) -> Callable[[Any], dict[str, Any]]:
        """What does it."""
        return _resolve(self.function)

    def prepare(self, config: Settings) -> None:
        """Prepare the process; for the command line alone, since a library leaves its host as it is."""
        if self.preparation:
            _resolve(self.preparation)(vars(config)["device"])

    @property
    def show(self) -> Callable[[dict[str, Any], Console], None]:
        """What prints its result."""
        return _resolve(self.display)


def _resolve(name: str) -> Any:
    return resolve_name(f"efficient_mae.{name}")


_TRAINING = "engine.machine.own_process:prepare_training"
_TIMING = "engine.machine.own_process:prepare_timing"

COMMANDS = {
    "demo": Command(
        "demo:DemoConfig",
        "demo:demo",
        "demo:show_demo",
        "learn on bundled images in a few minutes, and see what came of it",
        _TRAINING,
    ),
    "pretrain": Command(
        "tasks.pretrain_config:PretrainConfig",
        "report.command:pretrain_and_report",
        "report.command:show_pretrain",
        "pre-train an encoder on images; the same command again resumes",
        _TRAINING,
    ),
    "reconstruct": Command(
        "tasks.reconstruct:ReconstructConfig",
        "tasks.reconstruct:reconstruct",
        "tasks.reconstruct:show_reconstruct",
        "picture what a model makes of an image",
    ),
    "knn": Command(
        "tasks.knn:KnnConfig",
        "tasks.knn:knn",
        "tasks.knn:show_knn",
        "k-NN accuracy of an encoder, an untrained one, and raw pixels",
    ),
    "linear-probe": Command(
        "tasks.linear_probe:LinearProbeConfig",
        "tasks.linear_probe:linear_probe",
        "tasks.classifier:show_classifier",
        "train a linear head on a frozen encoder, and judge it",
        _TRAINING,
    ),
    "finetune": Command(
        "tasks.finetune:FinetuneConfig",
        "tasks.finetune:finetune",
        "tasks.classifier:show_classifier",
        "train an encoder and a head with labels, and judge them",
        _TRAINING,
    ),
    "replay": Command(
        "tasks.replay:ReplayConfig",
        "tasks.replay:replay",
        "tasks.replay:show_replay",
        "do a skipped step of a run again, and show what went wrong",
        _TRAINING,
    ),
    "export": Command(
        "tasks.export:ExportConfig",
        "tasks.export:export",
        "tasks.export:show_export",
        "write a model for timm, transformers, ONNX, torch.export",
    ),
    "bench step": Command(
        "bench.step:BenchStepConfig",
        "bench.step:bench_step",
        "bench.step:show_bench_step",
        "time training steps of MAE, Efficient MAE and other libraries",
        _TIMING,
    ),
    "bench data": Command(
        "bench.data:BenchDataConfig",
        "bench.data:bench_data",
        "bench.data:show_bench_data",
        "time the loader alone, beside the step",
    ),
    "bench flops": Command(
        "bench.flops_tables:BenchFlopsConfig",
        "bench.flops_tables:bench_flops",
        "bench.flops_tables:show_bench_flops",
        "count the paper's GFLOPs (Tables 1, 3 and 4)",
    ),
    "study": Command(
        "study.command:StudyConfig",
        "study.command:study",
        "study.command:show_study",
        "run a table or figure of the paper, beside the paper's figures",
    ),
    "report": Command(
        "report.command:ReportConfig",
        "report.command:report",
        "report.command:show_report",
        "write the report of a run",
    ),
    "doctor": Command(
        "bench.doctor:DoctorConfig",
        "bench.doctor:doctor",
        "bench.doctor:show_doctor",
        "whether training can run here, and what it would wait for",
    ),
    "info": Command(
        "bench.info:InfoConfig",
        "bench.info:info",
        "bench.info:show_info",
        "parameters, tokens and GMACs of a model, and the environment",
    ),
}

# Commands of two words, by their first.
GROUPS = {"bench": "measure and count what training costs"}
