"""`emae bench step` and `emae bench flops` by their public face. Times are not judged, only what is said of them."""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from efficient_mae.bench import peaks
from efficient_mae.bench.flops_tables import BenchFlopsConfig, FlopsResult, bench_flops, show_bench_flops
from efficient_mae.bench.step import BenchStepConfig, bench_step
from efficient_mae.bench.step_result import show_bench_step
from efficient_mae.cli import main
from efficient_mae.console import PlainConsole
from efficient_mae.errors import InputError
from tests.processes import imported

SMALL = dict(model="mae_vit_tiny_patch8", img_size=64, depth=1, decoder_depth=2, device="cpu", precision="fp32")


def test_every_method_is_timed_in_every_round(tmp_path: Path):
    out = tmp_path / "step"
    result = bench_step(BenchStepConfig(**SMALL, batch_size=4, rounds=2, memory=False, peers=True, out=str(out)))
    methods = {row.name: row for row in result.methods}
    assert {"MAE 0.75", "MAE 0.85", "Efficient MAE 0.85", "Efficient MAE 0.90"} < methods.keys()
    assert "transformers ViTMAE 0.75" in methods
    reference = methods["MAE 0.75"]
    assert reference.ratio == reference.gmac_ratio == 1
    for row in methods.values():
        assert len(row.seconds) == 2
        middle = sum(row.seconds) / 2
        assert row.images_per_second == pytest.approx(4 / middle, rel=0.02)
        assert row.ratio == pytest.approx(row.images_per_second / reference.images_per_second, rel=0.01)
        if row.gmacs is not None:  # three passes' worth, at two FLOPs a multiply-accumulate
            assert row.tflops == pytest.approx(row.images_per_second * row.gmacs * 6 / 1000, rel=0.05, abs=2e-4)
    assert methods["Efficient MAE 0.85"].gmacs < methods["MAE 0.85"].gmacs < reference.gmacs
    assert methods["Efficient MAE cross 0.85"].gmacs < methods["Efficient MAE 0.85"].gmacs
    assert result.p2dist_share > 0 and result.masks_share > 0
    assert json.loads((out / "step.json").read_text()) == result.plain()
    assert Image.open(out / "step.png").width > 600


def test_the_table_fits_and_leaves_out_what_was_not_measured(capsys: pytest.CaptureFixture[str]):
    result = bench_step(BenchStepConfig(**SMALL, batch_size=2, rounds=1, memory=False))
    show_bench_step(result, PlainConsole(width=80, soft_wrap=True))
    spoken = capsys.readouterr().out
    assert "GB" not in spoken and "TFLOP/s" in spoken
    row = dataclasses.replace(
        result.methods[0],
        name="transformers ViTMAE 0.75",
        images_per_second=12345.678,
        gmacs=69.2,
        peak_gigabytes=71.25,
    )
    show_bench_step(
        dataclasses.replace(result, methods=[row, *result.methods[1:]]), PlainConsole(width=80, soft_wrap=True)
    )
    spoken = capsys.readouterr().out
    assert all(
        text in spoken for text in ("transformers ViTMAE 0.75", "12,345.68", "69.20", "71.25", "GB: peak memory")
    )


def test_peers_by_name(capsys: pytest.CaptureFixture[str]):
    given = {**SMALL, "batch_size": 2, "rounds": 1, "memory": "false"}
    shape = [f"--{name}={value}" for name, value in given.items()]
    assert main(["bench", "step", *shape, "--peers", "[ViTMAE]", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["methods"]]
    assert [name for name in names if "transformers" in name] == ["transformers ViTMAE 0.75"] and len(names) > 5
    assert main(["bench", "step", *shape, "--peers", "[SimMIM]"]) == 2
    assert "no name contains one of these; there are transformers ViTMAE 0.75" in capsys.readouterr().err


def test_what_cannot_be_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="rounds=0"):
        bench_step(BenchStepConfig(**SMALL, rounds=0))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "below", tmp_path / "file"):
        # Told before the models are built, of which these peers are none.
        with pytest.raises(InputError, match="cannot be written"):
            bench_step(BenchStepConfig(**SMALL, memory=False, peers=("nobody",), out=str(out)))
    assert main(["bench", "step", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err


def killed(*_: object) -> None:
    """As the system does with a process that takes more memory than there is."""
    os.kill(os.getpid(), signal.SIGKILL)


def refused(*_: object) -> None:
    """As PyTorch does where a limit is reached."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on a CPU is measured on Linux")
@pytest.mark.parametrize(("end", "at_once"), [(killed, True), (refused, False)])
def test_a_step_that_finds_no_memory(end: Callable[..., None], at_once: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peaks, "_resident_peak", end)
    if at_once:
        monkeypatch.setattr(peaks, "multiprocessing", SimpleNamespace(get_context=lambda _: imported()))
    with pytest.raises(InputError, match="batch_size=2: does not fit the memory of cpu; lower it"):
        bench_step(BenchStepConfig(**SMALL, batch_size=2, rounds=1))


@pytest.mark.slow
def test_peak_memory_is_measured_in_processes_of_their_own():
    settings = SMALL | {"img_size": 128, "depth": 6}
    result = bench_step(BenchStepConfig(**settings, batch_size=64, rounds=1))
    peaks = {row.name: row.peak_gigabytes for row in result.methods}
    assert 0 < peaks["Efficient MAE 0.95"] < peaks["MAE 0.75"]


@pytest.fixture(scope="module")
def flops() -> FlopsResult:
    """The paper's GFLOPs, counted once."""
    return bench_flops(BenchFlopsConfig())


def test_the_papers_gflops_fit_80_columns(flops: FlopsResult, capsys: pytest.CaptureFixture[str]):
    show_bench_flops(flops, PlainConsole(width=80))
    _, heading, *rows, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["table", "model", "ratio", "method", "paper", "counted", "off", "computed"]
    assert rows[-1].split()[:6] == ["4", "large_patch16", "0.95", "Efficient", "MAE", "5.9"]


def test_the_papers_gflops_within_a_percent_and_a_half(flops: FlopsResult):
    rows = flops.rows
    assert {row.table for row in rows} == {"1", "3", "4"}
    for row in rows:
        assert row.counted == pytest.approx(row.paper, rel=0.015), row
        assert row.computed is None or row.computed <= row.counted
