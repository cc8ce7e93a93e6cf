"""What `emae` can do: of each subcommand its settings, its function, and how its result is shown.

They are named here and imported when they are asked for, so that `emae --help` need not wait for torch.
"""

from collections import ChainMap
from collections.abc import Mapping
from typing import cast

from efficient_mae.command import Command
from efficient_mae.tasks.registry import PREPARE, TASKS

# oneDNN compiles a product for every new shape of bfloat16 matrices, half a megabyte each, and keeps the last 1024:
# enough for one model, whose packed lengths change, but models that are timed in turn would drop each other's.
_TIMING = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}

_COMMANDS: dict[str, Command] = {
    "demo": Command(
        "demo:DemoConfig",
        "demo:demo",
        "demo:show_demo",
        "learn on bundled images in a few minutes, and see what came of it",
        PREPARE,
    ),
    **TASKS,
    "reconstruct": Command(
        "tasks.reconstruct:ReconstructConfig",
        "tasks.reconstruct:reconstruct",
        "tasks.reconstruct:show_reconstruct",
        "picture what a model makes of an image",
    ),
    "knn": Command(
        "tasks.classify.knn:KnnConfig",
        "tasks.classify.knn:knn",
        "tasks.classify.knn:show_knn",
        "k-NN accuracy of an encoder, an untrained one, and raw pixels",
    ),
    "probe": Command(
        "tasks.classify.probe.command:ProbeConfig",
        "tasks.classify.probe.command:probe",
        "tasks.classify.probe.result:show_probe",
        "judge encoders by ridge, logistic regression and k-NN, and compare them",
    ),
    "embed": Command(
        "tasks.embed:EmbedConfig",
        "tasks.embed:embed",
        "tasks.embed:show_embed",
        "write the features of images to a file",
    ),
    "predict": Command(
        "tasks.predict:PredictConfig",
        "tasks.predict:predict",
        "tasks.predict:show_predict",
        "write the classes of images to a table, of their pixels to label maps, or their objects",
    ),
    "scenes": Command(
        "tasks.scenes.command:ScenesConfig",
        "tasks.scenes.command:scenes",
        "tasks.scenes.command:show_scenes",
        "make a small benchmark for segmentation and detection",
    ),
    "replay": Command(
        "tasks.replay:ReplayConfig",
        "tasks.replay:replay",
        "tasks.replay:show_replay",
        "do a skipped step of a run again, and show what went wrong",
        PREPARE,
    ),
    "export": Command(
        "tasks.export.command:ExportConfig",
        "tasks.export.command:export",
        "tasks.export.command:show_export",
        "write a model for timm, transformers, ONNX, torch.export",
    ),
    "bench step": Command(
        "bench.step:BenchStepConfig",
        "bench.step:bench_step",
        "bench.step_result:show_bench_step",
        "time training steps of MAE, Efficient MAE and other libraries",
        PREPARE,
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

# Each by its name; a task that is registered is one at once.
COMMANDS: Mapping[str, Command] = ChainMap(cast(dict[str, Command], TASKS), _COMMANDS)

# Commands of two words, by their first.
GROUPS = {"bench": "measure and count what training costs"}
