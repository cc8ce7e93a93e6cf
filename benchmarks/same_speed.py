"""Whether two commits train as fast: a step of ViT-B/16 of each in turn, in two processes that wait for one another.

    python benchmarks/same_speed.py BEFORE [AFTER] [--rounds 15] [--batch_size 8]

BEFORE and AFTER are commits; without AFTER it is HEAD. A step goes through the public face: forward, backward, AdamW.
Writes results/same_speed.json: the median and the quartiles of after / before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "same_speed.json"
PRECISIONS = ("fp32", "bf16")


def serve(precision: str, batch_size: int) -> None:
    """Take a step for each line read, and print its seconds."""
    import efficient_mae as emae

    print(emae.__file__, flush=True)
    model = emae.create_model("mae_vit_base_patch16", mask_ratio=0.85, gamma=0.6, beta=26.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, generator = torch.randn(batch_size, 3, 224, 224), torch.Generator().manual_seed(0)
    for _ in sys.stdin:
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(images, generator=generator).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(time.perf_counter() - begin, flush=True)


def in_turn(sources: list[Path], precision: str, batch_size: int, rounds: int) -> list[list[float]]:
    """Seconds of a step by tree and round; the first of each is not counted."""
    command = [sys.executable, __file__, "serve", precision, str(batch_size)]
    servers = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in sources
    ]
    seconds: list[list[float]] = [[] for _ in servers]
    for server, tree in zip(servers, sources, strict=True):
        # What is imported is these sources, or the comparison would compare nothing.
        assert Path(server.stdout.readline().strip()).is_relative_to(tree)
    for number in range(rounds + 1):
        order = list(enumerate(servers))
        for index, server in order if number % 2 else reversed(order):
            server.stdin.write("\n")
            server.stdin.flush()
            taken = float(server.stdout.readline())
            if number:
                seconds[index].append(round(taken, 4))
    for server in servers:
        server.communicate()
    return seconds


def main() -> None:
    """Compare, print, write."""
    # Not above: in a process that takes steps nothing but its own sources is imported.
    from same_steps import sources_of

    from efficient_mae.engine.machine.facts import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args()
    named = ["git", "-C", str(ROOT), "rev-parse", given.before, given.after]
    commits = subprocess.run(named, check=True, capture_output=True, text=True).stdout.split()
    found = {}
    with sources_of(commits[0]) as before, sources_of(commits[1]) as after:
        for precision in PRECISIONS:
            earlier, later = in_turn([before, after], precision, given.batch_size, given.rounds)
            ratios = [new / old for old, new in zip(earlier, later, strict=True)]
            low, middle, high = (round(value, 4) for value in statistics.quantiles(ratios, n=4))
            found[precision] = {"median": middle, "quartiles": [low, high], "before": earlier, "after": later}
            print(f"{precision}: after / before {middle} ({low} to {high})", flush=True)
    machine = describe_machine(torch.device("cpu"))
    result = {"date": date.today().isoformat(), "before": commits[0], "after": commits[1], "machine": machine}
    RESULT.write_text(
        json.dumps({**result, "batch_size": given.batch_size, "after / before": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    serve(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["serve"] else main()
