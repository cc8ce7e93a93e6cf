"""What pre-training costs on 1, 8 and 64 H100s: work, time, memory, communication, storage and decoding.

    python benchmarks/scaling.py [--results RESULTS] [--out benchmarks/results/scaling.json] [--page docs/scaling.md]

Work is counted on the models (`efficient_mae.bench.flops`), and what a training step keeps for its backward pass is
counted on them too, on a CPU in bf16. Decoding is measured on one core. The rest is arithmetic on the assumptions of
scaling_tables.py, of which the rate of one H100 was measured. The page's tables, between its markers, are replaced.
With RESULTS nothing is counted or measured again.
"""

import argparse
import datetime
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scaling_tables import ASSUMED, rewrite, tables
from skimage import data as pictures

import efficient_mae as emae
from efficient_mae.bench.flops import count_gmacs, model_cost
from efficient_mae.data import PretrainTransform, Reading, TrainDataset, open_source
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder, MaskLayout, MaskPlanner
from efficient_mae.methods.mae.config import MAE_MASK_RATIO


def models() -> dict[str, MAEConfig]:
    """ViT-B, L, H, and one of a billion parameters: ViT-g's width, depth and heads, an MLP of 4 times the width."""
    with torch.device("meta"):
        named = {
            name: emae.create_model(f"mae_vit_{size}").config
            for name, size in (
                ("ViT-B/16", "base_patch16"),
                ("ViT-L/16", "large_patch16"),
                ("ViT-H/14", "huge_patch14"),
            )
        }
    return {**named, "ViT-g/14": replace(named["ViT-H/14"], embed_dim=1408, depth=40, num_heads=16)}


def kept_bytes_an_image(config: MAEConfig) -> dict[str, float]:
    """Bytes that a training step in bf16 keeps for an image: plain, with checkpointing, and in the decoder alone."""
    found = {"decoder": _decoder_bytes(config)}
    return found | {"plain": _kept_bytes(config, False), "checkpointed": _kept_bytes(config, True)}


def _kept_bytes(config: MAEConfig, checkpointed: bool) -> float:
    """The same of one model as it is."""
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    model.set_grad_checkpointing(checkpointed)

    def loss(model: MaskedAutoencoder, layout: MaskLayout) -> torch.Tensor:
        return model(torch.zeros(len(layout.mask), config.in_chans, *config.img_size), layout).loss

    return _an_image(loss, model)


def _decoder_bytes(config: MAEConfig) -> float:
    """What the decoder keeps of an image, where it decodes all at once."""
    with torch.device("meta"):
        model = MaskedAutoencoder(replace(config, depth=1))

    def loss(model: MaskedAutoencoder, layout: MaskLayout) -> torch.Tensor:
        latent = torch.zeros(len(layout.mask), 1 + layout.ids_keep.shape[1], config.embed_dim)
        return model.decode(latent, layout.parts[0]).sum()

    return _an_image(loss, model)


def _an_image(loss: Callable[..., torch.Tensor], model: MaskedAutoencoder) -> float:
    """Bytes that an image adds to a pass: of 16 images, less those of 8."""
    device, counts = torch.device("cpu"), []

    def in_bf16(model: MaskedAutoencoder, layout: MaskLayout) -> torch.Tensor:
        with autocast("bf16", device):
            return loss(model, layout)

    for images in (8, 16):
        noise = torch.rand(images, math.prod(model.config.grid_size), generator=torch.Generator().manual_seed(0))
        counts.append(max(count_passes(in_bf16, model, model.config.planner()(noise), device)))
    return (counts[1] - counts[0]) / 8


def count(config: MAEConfig) -> dict[str, Any]:
    """What is counted on a model: parameters, work, and what its step keeps."""
    cost, mae = model_cost(config), config.baseline()
    kept = {"efficient_mae": kept_bytes_an_image(config), "mae": kept_bytes_an_image(mae)}
    return {
        "parameters": cost.encoder_parameters + cost.decoder_parameters,
        "encoder_parameters": cost.encoder_parameters,
        "block_parameters": 12 * config.embed_dim**2,
        "gmacs": {"efficient_mae": count_gmacs(config), "mae": cost.mae_gmacs},
        "kept_bytes_an_image": kept,
        "decoder_part": config.unit(torch.device("cuda")),
    }


def measure_decoding(rounds: int = 7, images: int = 64) -> float:
    """Images a second on one core: read, decode, crop to 224 pixels, mask; photographs of 500 x 375 as JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(images):
            photograph = Image.fromarray((pictures.astronaut, pictures.coffee, pictures.rocket)[number % 3]())
            photograph.resize((500, 375)).save(Path(folder) / f"{number:02}.jpg", quality=90)
        dataset = TrainDataset(
            open_source(folder, "train"),
            PretrainTransform((224, 224), Reading(3), scale=(0.2, 1.0), hflip=True),
            seed=0,
            num_patches=196,
            make_masks=MaskPlanner((14, 14), 16),
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = []
        for epoch in range(rounds + 1):
            begin = time.perf_counter()
            dataset.__getitems__([(epoch, index) for index in range(images)])
            seconds.append(time.perf_counter() - begin)
        torch.set_num_threads(threads)
    return images / statistics.median(seconds[1:])


def count_and_measure() -> dict[str, Any]:
    """All that is not arithmetic, with date and machine."""
    decoded = measure_decoding()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "mae_mask_ratio": MAE_MASK_RATIO,
        "measured": {"decoded_images_a_second_on_one_core": round(decoded, 1)},
        "counted": {name: count(config) for name, config in models().items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="of an earlier run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    result = json.loads(arguments.results.read_text()) if arguments.results else count_and_measure()
    result["assumed"] = ASSUMED
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.page:
        measured = result["measured"]["decoded_images_a_second_on_one_core"]
        for name, content in tables(result["counted"], measured):
            rewrite(arguments.page, name, content)


if __name__ == "__main__":
    main()
