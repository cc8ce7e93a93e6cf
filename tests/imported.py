"""Imported, all is imported that commands need, for processes to be forked from this one."""

import atexit
import gc
import importlib
import os

from efficient_mae.cli import COMMANDS

# Beside what commands import when they are asked for: what they import when they need it, and what tests do.
LAZY = (
    "torch.utils.tensorboard", "torch._dynamo", "torch.distributed.fsdp", "torch.nn.parallel",
    "efficient_mae.report.predictions", "efficient_mae.report.tokenizer", "pytest",
)  # fmt: skip

for _name in LAZY:
    importlib.import_module(_name)
for _command in COMMANDS.values():
    assert _command.run and _command.show
gc.collect()
gc.freeze()  # it stays: a process that looks for garbage would walk through all of it, and so copy it
atexit.register(gc.unfreeze)
os.fsync = lambda _: None  # nor wait for the disk: what is flushed outlives the machine's power, which no test cuts
