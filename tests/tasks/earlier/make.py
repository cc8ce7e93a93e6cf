"""Made what lies here: `PYTHONPATH=CHECKOUT/src OMP_NUM_THREADS=1 python -m tests.tasks.earlier.make`.

CHECKOUT is of commit 2b23c41. A run that SIGTERM stopped half way, and what the same code made of it when it was
resumed; its model is smaller than any that has a name, so that the checkpoint can be committed. And what config.yaml
held of the other tasks.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import torch
import yaml
from efficient_mae.engine.distributed import ALONE
from efficient_mae.models.sizes import SIZES, Size
from efficient_mae.tasks.finetune import FinetuneConfig
from efficient_mae.tasks.knn import KnnConfig, knn
from efficient_mae.tasks.linear_probe import LinearProbeConfig

from efficient_mae.errors import Stopped
from efficient_mae.interop import load
from efficient_mae.tasks.features import extract_features
from efficient_mae.tasks.pretrain import PretrainRun, make_pretrain_run, pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from tests.tasks.earlier.machine import machine
from tests.tasks.labelled import write_labelled

HERE = Path(__file__).parent
# SIGTERM comes in a step, and the next is the last.
STOP, STEPS = 6, 8
SIZES["micro"] = Size(16, 1, 2, decoder_embed_dim=16)
SETTINGS = {
    "data": "fashion-mnist-sample", "model": "mae_vit_micro_patch4", "img_size": 28, "in_chans": 1,
    "decoder_depth": 1, "epochs": 2, "batch_size": 2500, "base_lr": 1e-3, "seed": 3, "device": "cpu",
    "precision": "fp32", "num_workers": 0, "log_every": 1, "panel_every": 2,
}  # fmt: skip


def stop(run: PretrainRun) -> None:
    stop.steps += 1
    if stop.steps == STOP - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = PretrainConfig(**SETTINGS, out=str(run))
        stop.steps, PretrainRun.after_step = 0, stop
        try:
            pretrain(config)
            raise SystemExit("it was not stopped")
        except Stopped as stopped:
            print(stopped)
        shutil.copytree(run, HERE / "run", ignore=shutil.ignore_patterns("tensorboard", "figures"))
        pretrain(config)
        write_expected(run, config)
        small = {"data": "labelled", "out": "out", "precision": "fp32", "batch_size": 8}
        for name, kind in {"finetune": FinetuneConfig, "linear-probe": LinearProbeConfig}.items():
            settings = json.loads(json.dumps(dataclasses.asdict(kind(**small, from_scratch=True))))
            (HERE / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def write_expected(run: Path, config: PretrainConfig) -> None:
    """What the run came to, and the masks of the steps after it was stopped."""
    batches = make_pretrain_run(config, ALONE).batches(STOP)
    masks = hashlib.sha256()
    for _ in range(STOP, STEPS):
        batch = next(batches)
        masks.update(batch.indices.numpy().tobytes() + batch.masks.value.mask.numpy().tobytes())
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    encoder, labelled = run / "encoder.safetensors", write_labelled(run.parent / "labelled")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    image = torch.linspace(-1, 1, 28 * 28).square().reshape(1, 1, 28, 28)
    expected = {
        "machine": machine(),
        # Of the weights' files the headers may say more in later versions.
        "optimizer": hashlib.sha256((last / "optimizer.safetensors").read_bytes()).hexdigest(),
        "order_and_masks": masks.hexdigest(),
        "loss": [row["loss"] for row in rows],
        "features": extract_features(load(encoder).eval(), image, "avg")[0].tolist(),
        "knn": knn(KnnConfig(weights=str(encoder), data=str(labelled), k=5, device="cpu", num_workers=0))["accuracy"],
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.copy(encoder, HERE)


if __name__ == "__main__":
    main()
