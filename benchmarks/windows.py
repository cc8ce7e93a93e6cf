"""What reading a scene by the window saves: training crops a second of 13-band scenes of 2,000 x 2,000, in turn.

    python benchmarks/windows.py

By the window, as training reads; and with the whole scene read first. Scenes are uint16 TIFFs in tiles of 256 x 256,
in strips and compressed, and .npy. Writes results/windows.json.
"""

import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import tifffile
import torch

from efficient_mae.data import PretrainTransform, Reading, open_source
from efficient_mae.data.batches.order import sample_rng
from efficient_mae.data.images.decode import OpenedImage
from efficient_mae.data.images.rasters import ArrayRaster
from efficient_mae.engine.machine.facts import describe_machine

RESULT = Path(__file__).parent / "results" / "windows.json"
BANDS, SIDE, ROUNDS, CROPS = 13, 2000, 5, 6
PLAIN = {"photometric": "minisblack", "planarconfig": "contig"}
WRITERS = {
    "tiles": ("a.tif", lambda file, scene: tifffile.imwrite(file, scene, tile=(256, 256), **PLAIN)),
    "tiles, deflate": (
        "a.tif",
        lambda file, scene: tifffile.imwrite(file, scene, tile=(256, 256), **PLAIN, compression="zlib"),
    ),
    "strips": ("a.tif", lambda file, scene: tifffile.imwrite(file, scene, **PLAIN, rowsperstrip=16)),
    "npy": ("a.npy", np.save),
}


def crops_per_second(image: OpenedImage, whole: bool) -> float:
    transform = PretrainTransform((224, 224), Reading(BANDS, (0, 10_000)), scale=(0.01, 0.05))
    begin = time.perf_counter()
    for number in range(CROPS):
        seen = image
        if whole:
            raster = image.numbers()
            assert raster is not None
            seen = OpenedImage(ArrayRaster(np.array(raster.window(0, 0, SIDE, SIDE))), image.name, num_bytes=0)
        transform.crops(seen, [sample_rng(0, 0, number, "crop")])
    return CROPS / (time.perf_counter() - begin)


def main() -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    noise = np.random.default_rng(0).integers(0, 300, (SIDE, SIDE, BANDS))
    scene = ((x + y)[..., None] * 2 + noise).astype(np.uint16)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, write) in WRITERS.items():
            place = Path(folder) / name
            place.mkdir()
            write(place / file, scene)
            source = open_source(str(place))
            found: dict[str, list[float]] = {"by the window": [], "whole": []}
            for _ in range(ROUNDS):
                for way in found:
                    found[way].append(crops_per_second(source.open(0), way == "whole"))
            medians = {way: round(statistics.median(rates), 2) for way, rates in found.items()}
            rows[name] = medians | {"ratio": round(medians["by the window"] / medians["whole"], 1)}
            print(name, rows[name])
    content = {"date": date.today().isoformat(), "machine": describe_machine(torch.device("cpu")), "crops/s": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
