"""Learning rates of the methods that MAE is compared with (docs/results.md), judged as in the pilot.

    OMP_NUM_THREADS=1 python benchmarks/rates.py

As benchmarks/pilot.py found MAE's: on the first 50,000 training images of Fashion-MNIST, judged on the other 10,000,
its held-out images not opened, one seed. Each method has the epochs that MAE's time buys, as `emae study table3
--preset main` measured them. Where the best rate of a method is the least or the greatest, half of it or twice as
much is tried too, until it no longer is. Each run's line goes to benchmarks/results/rates.jsonl as it is done, and
what is there isn't run again.
"""

import datetime
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pilot import RATES, emae, run, write_split

from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.study.cells import CELLS, SAME_TIME
from efficient_mae.study.presets import find_preset
from efficient_mae.study.speeds import settle_length

RESULTS = Path(__file__).parent / "results" / "rates.jsonl"
STUDIES = Path(__file__).parents[1] / "studies" / "results" / "main"
METHODS = ("simmim", "maskfeat", "beit", "cae")
PRESET, SEED, JOBS = find_preset("main"), 100, 2


def rated(data: Path, method: str, rate: float) -> dict[str, Any]:
    """Accuracy of a method's encoder at a rate."""
    cell = settle_length(CELLS[method + SAME_TIME], PRESET, STUDIES)
    if cell is None:
        raise SystemExit(f"{STUDIES / 'speeds.json'}: how long an epoch of {method} takes isn't there")
    made = {name: str(data / command) for name, command in cell.made.items()}
    settings = {**PRESET.pretraining(cell), **made, "base_lr": rate, "seed": SEED}
    line = {"method": method, "base_lr": rate, "epochs": settings["epochs"]}
    return line | run(data, settings, PRESET.settings("probe", cell))


def best_and_next(lines: list[dict[str, Any]], method: str) -> tuple[float, float | None]:
    """The best rate of a method, and the one beyond it if it is the least or the greatest."""
    accuracies = {line["base_lr"]: line["accuracy"] for line in lines if line["method"] == method}
    best = max(accuracies, key=accuracies.__getitem__)
    return best, {min(accuracies): best / 2, max(accuracies): best * 2}.get(best)


def main() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    where = {"machine": describe_machine(find_device("cpu")), "date": datetime.date.today().isoformat()}

    def need(wanted: list[tuple[str, float]]) -> None:
        there = {(line["method"], line["base_lr"]) for line in lines}
        lacking = [one for one in wanted if one not in there]
        tokenizer = folder / "tokenizer"
        if lacking and not tokenizer.is_dir():
            chosen = PRESET.settings("tokenizer", CELLS["beit"])
            emae(folder, "tokenizer", {**chosen, "seed": SEED, "out": str(tokenizer)})
        with ThreadPoolExecutor(JOBS) as pool:
            for line in pool.map(lambda one: rated(folder, *one), lacking):
                lines.append(line | where)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_split(folder)
        need([(method, rate) for rate in RATES for method in METHODS])
        while beyond := [(method, rate) for method in METHODS if (rate := best_and_next(lines, method)[1])]:
            need(beyond)
    print(json.dumps({method: best_and_next(lines, method)[0] for method in METHODS}))


if __name__ == "__main__":
    main()
