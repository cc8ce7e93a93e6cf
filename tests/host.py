"""A program with settings of its own, which calls the package's functions and says what it then finds changed.

    python -m tests.host FOLDER

Prints JSON: of each of CALLS the names of what it changed; of each of COMMANDS what it told its own process. What is
compared is a whole process', so it runs alone.
"""

import ctypes
import importlib
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a program may have set, by module; of a function, what it returns.
SETTINGS = {
    "sys": "excepthook displayhook unraisablehook stdout stderr path meta_path getrecursionlimit getswitchinterval",
    "gc": "callbacks isenabled get_threshold get_freeze_count",
    "os": "getcwd",
    "socket": "getdefaulttimeout",
    "threading": "excepthook enumerate",
    "warnings": "filters showwarning",
    "random": "getstate",
    "numpy": "geterr get_printoptions",
    "numpy.random": "get_state",
    "PIL.Image": "MAX_IMAGE_PIXELS ID OPEN SAVE EXTENSION",
    "PIL.ImageFile": "LOAD_TRUNCATED_IMAGES",
    "matplotlib": "rcParams",
    "datasets": "are_progress_bars_disabled",
    "datasets.config": "HF_UPDATE_DOWNLOAD_COUNTS HF_HUB_OFFLINE",
    "datasets.utils.logging": "get_verbosity",
    "transformers.utils.logging": "get_verbosity is_progress_bar_enabled",
    "torch": "get_num_threads get_num_interop_threads get_default_dtype get_default_device is_grad_enabled "
    "get_deterministic_debug_mode get_float32_matmul_precision is_warn_always_enabled is_autocast_enabled "
    "is_anomaly_enabled initial_seed get_rng_state",
    "torch.backends.cudnn": "enabled benchmark deterministic allow_tf32",
    "torch.backends.cuda": "flash_sdp_enabled mem_efficient_sdp_enabled math_sdp_enabled cudnn_sdp_enabled",
    "torch.backends.mkldnn": "enabled",
    "torch.multiprocessing": "get_sharing_strategy",
    "torch.distributed": "is_initialized",
    "torch.cuda": "is_initialized",
}
# What these do when they are imported is theirs: some set variables or draw random numbers.
LIBRARIES = (
    "rich.console", "sklearn", "timm", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard",
    "transformers.models.vit_mae.modeling_vit_mae",
)  # fmt: skip
HOOKS = {"excepthook", "displayhook", "unraisablehook", "showwarning"}
LOGGERS = (None, "torch", "torch.onnx", "PIL", "matplotlib", "timm", "datasets", "transformers")


def state() -> dict[str, Any]:
    """Everything that is compared."""
    found: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        module = importlib.import_module(name)
        for setting in settings.split():
            value = getattr(module, setting)
            value = value() if callable(value) and setting not in HOOKS else value
            found[f"{name}.{setting}"] = repr(value.tolist() if hasattr(value, "tolist") else value)
    lines = Path("/proc/self/status").read_text().splitlines()
    found["umask, signals, cores"] = [
        line for line in lines if line.startswith(("Umask", "SigBlk", "SigIgn", "SigCgt", "Cpus_allowed"))
    ]
    found["handlers"] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    found["limits"] = [resource.getrlimit(getattr(resource, name)) for name in limits]
    found["environment"] = dict(os.environ)
    found["children"] = "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    found["start method"] = multiprocessing.get_start_method(allow_none=True)
    found["locale"] = locale.setlocale(locale.LC_ALL)
    found["logging"] = [(logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in LOGGERS]
    number, pr_get_pdeathsig = ctypes.c_int(), 2  # sys/prctl.h
    ctypes.CDLL(None).prctl(pr_get_pdeathsig, ctypes.byref(number))
    found["end with the parent"] = number.value
    # PyTorch's note of what to seed devices with, once they are used.
    found["seed of devices"] = [call[0].__closure__[0].cell_contents for call in _seeds()]
    found["memory is given back"] = kept_addresses() < 64
    return {name: repr(value) for name, value in found.items()}


def _seeds():
    import torch

    return [call for call in torch.cuda._lazy_seed_tracker.get_calls() if call]


def differences(before: dict[str, str], patience: float = 5.0) -> list[str]:
    """What isn't as before; threads and processes that are told to end take a moment."""
    deadline = time.monotonic() + patience
    while found := sorted(name for name, value in state().items() if value != before[name]):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return found


def kept_addresses() -> int:
    """MiB that the allocator keeps of 128 that are let go."""
    import torch

    def size() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() >> 20

    before = size()
    torch.empty(128 << 20, dtype=torch.uint8)
    return size() - before


def set_up() -> None:
    """Settings that no library comes with."""
    import datasets
    import matplotlib
    import numpy as np
    import PIL.Image
    import torch
    from tqdm.auto import tqdm

    for library in LIBRARIES:
        importlib.import_module(library)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)
    os.umask(0o027)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    PIL.Image.MAX_IMAGE_PIXELS = 10**8
    matplotlib.rcParams["font.size"] = 7
    datasets.enable_progress_bars()
    tqdm([], disable=True)  # which starts a thread, and settles how processes are started; datasets uses it


MODEL = {
    "model": "mae_vit_tiny_patch4", "img_size": 16, "in_chans": 1, "depth": 1, "decoder_depth": 1,
    "decoder_embed_dim": 32,
}  # fmt: skip
RUN = {"precision": "fp32", "device": "cpu", "batch_size": 16, "epochs": 1, "warmup_epochs": 0}


def call(command: str, **settings: Any) -> Callable[[], Any]:
    import efficient_mae

    return getattr(efficient_mae, command.replace("-", "_").replace(" ", "_"))(**settings)


def import_all() -> None:
    import efficient_mae

    for name in efficient_mae.__all__:
        getattr(efficient_mae, name)


def models() -> None:
    import efficient_mae as emae

    model = emae.load("run")
    emae.to_timm(model)
    emae.adapt_encoder(model, img_size=20, in_chans=3, channels="repeat")
    emae.from_hf(emae.to_hf(model))
    import torch

    torch.save({"model": model.state_dict()}, "mae.pth")


def hub() -> None:
    from efficient_mae.data import open_source

    open_source("hf:labelled", "train").image(0)


def bench_flops() -> None:
    from efficient_mae.methods.mae import MAEConfig

    (row, *_) = MAEConfig.published()
    MAEConfig.published = classmethod(lambda _: (row,))
    call("bench flops", masks=2)


def bench_step() -> None:
    from efficient_mae.bench import step

    step.MATMUL_SIDE["cpu"] = 64
    settings = {**MODEL, "img_size": 28, "batch_size": 2, "rounds": 1, "device": "cpu", "precision": "fp32"}
    call("bench step", **settings, memory=False, peers=("transformers",))


def doctor() -> None:
    from efficient_mae.bench import doctor_data

    doctor_data._SECONDS = 0.2
    call("doctor", **MODEL, data="labelled", out="new", device="cpu", batch_size=8)


def replay() -> None:
    row = {"step": 2, "loss": "nan", "grad_norm": "nan", "rollbacks": 0, "world_size": 1, "accum_iter": 1}
    Path("run/skipped.jsonl").write_text(json.dumps(row))
    call("replay", run="run")


CLASSIFIER = {**RUN, "data": "labelled", "num_workers": 1}
CALLS: dict[str, Callable[[], Any]] = {
    "import": import_all,
    "pretrain": lambda: call("pretrain", **MODEL, **RUN, data="labelled", out="run", knn_every=1, num_workers=1),
    "pretrain again": lambda: call("pretrain", config="run/config.yaml"),
    "finetune": lambda: call("finetune", **CLASSIFIER, weights="run", out="tuned", ema_decay=0.9),
    "finetune from scratch": lambda: call(
        "finetune", **CLASSIFIER | {"num_workers": 0}, from_scratch=True, out="scratch",
        model="mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1,
    ),
    "linear-probe": lambda: call("linear-probe", **CLASSIFIER, weights="run", out="probed"),
    "knn": lambda: call("knn", weights="run", data="labelled", device="cpu", num_workers=1),
    "reconstruct": lambda: call("reconstruct", weights="run", image="labelled/val/blob/000.png", device="cpu"),
    "replay": replay,
    "export timm": lambda: call("export", weights="run", out="timm", format="timm"),
    "export transformers": lambda: call("export", weights="run", out="hf", format="transformers"),
    "report": lambda: call("report", run="run"),
    "doctor": doctor,
    "info": lambda: call("info", weights="run", device="cpu"),
    "bench flops": bench_flops,
    "bench step": bench_step,
    "bench data": lambda: call(
        "bench data", **MODEL, data="labelled", device="cpu", batch_size=8, seconds=0.1, num_workers=[1]
    ),
    "study": lambda: call("study", name="fig4", preset="smoke", out="studies", device="cpu"),
    "models": models,
    "hub": hub,
}  # fmt: skip


# They end with status 2 before anything is computed.
COMMANDS = {
    "pretrain": "--data absent --out absent",
    "finetune": "--data absent --out absent --from scratch",
    "bench step": "--model mae_vit_tiny_patch4 --img_size 16 --memory false",
    "knn": "--weights absent",
}


def told(command: str) -> tuple[bool, str | None]:
    """Whether a process that was given a command keeps what it frees, and for how many products oneDNN has room."""
    from efficient_mae.cli import main

    ours, theirs = multiprocessing.Pipe()
    if (child := os.fork()) == 0:
        status = main([*command.split(), *COMMANDS[command].split(), "--device", "cpu"])
        theirs.send((status, kept_addresses() >= 128, os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY")))
        os._exit(0)
    os.waitpid(child, 0)
    status, *found = ours.recv()
    assert status == 2
    return tuple(found)


def main(folder: Path) -> None:
    import PIL.Image

    from tests.tasks.labelled import write_labelled

    os.chdir(folder)
    write_labelled(Path("labelled"))
    set_up()
    commands = {command: told(command) for command in COMMANDS}
    changed, said, sys.stdout = {}, sys.stdout, sys.stderr
    for name, function in CALLS.items():
        if name != "import":
            PIL.Image.init()  # as PIL does by itself, before it reads or writes any but the usual formats
        before = state()
        function()
        changed[name] = differences(before)
    print(json.dumps({"changed": changed, "commands": commands}), file=said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
