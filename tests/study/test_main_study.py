"""What the main study decides, against plain loops and on answers whose truth is known."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import f, f_oneway, norm, ttest_rel

from efficient_mae.cli import main
from efficient_mae.study import command, runs
from efficient_mae.study.main_study import HYPOTHESES
from efficient_mae.study.presets import PRESETS
from efficient_mae.study.results.decisions import Verdict, compare_rows, decide, f_test_in_words, rows_and_seeds
from efficient_mae.study.results.probed import Comparison
from efficient_mae.study.results.write import StudyResult, write_study
from efficient_mae.study.studies import STUDIES
from efficient_mae.tasks.classify.probe.record import Record
from efficient_mae.tasks.classify.probe.statistics import holm
from tests.tasks.conftest import flags
from tests.tasks.labelled import write_labelled

MAIN = STUDIES["main"]
CELLS = [cell.name for cell in MAIN.cells(paper=False)]
BASELINES = ("untrained encoder", "raw pixels")


def answers_of(
    rng: np.random.Generator, accuracies: dict[str, float], seeds: int = 4, subsets: int = 3, images: int = 40
) -> dict[str, dict[int, np.ndarray]]:
    """Answers with these chances: images and label subsets move them up and down for all rows alike, images and seeds
    for each row by itself."""
    shared = rng.normal(size=(1, 1, images)) * 0.6 + rng.normal(size=(1, subsets, 1)) * 0.02
    found = {}
    for name, accuracy in accuracies.items():
        own = rng.normal(size=(seeds, 1, 1)) * 0.05 + rng.normal(size=(1, 1, images)) * 0.3
        own = own + rng.normal(size=(seeds, subsets, images)) * 0.1
        right = shared + own < norm.ppf(accuracy) * np.sqrt(0.6**2 + 0.02**2 + 0.05**2 + 0.3**2 + 0.1**2)
        found[name] = dict(enumerate(right))
    return found


def accuracies(**others: float) -> dict[str, float]:
    return dict.fromkeys(CELLS, 0.8) | {"untrained encoder": 0.6, "raw pixels": 0.6} | others


def decided(answers: dict[str, dict[int, np.ndarray]], seeds: int = 4) -> Verdict:
    verdict = decide(MAIN, Comparison(answers), range(seeds), planned=20)
    assert verdict is not None
    return verdict


def drawn_anew(rng: np.random.Generator, gains: np.ndarray, times: int) -> Iterator[float]:
    """Each of seeds, subsets and images with replacement, one fewer than there are; a plain loop."""
    for _ in range(times):
        yield gains[np.ix_(*(rng.integers(size, size=size - 1) for size in gains.shape))].mean()


def test_decisions_against_a_plain_loop():
    rng, times = np.random.default_rng(0), 4000
    answers = answers_of(
        rng, accuracies(**{"mae-0.95": 0.76, "efficient-mae-0.95": 0.79, "efficient-mae-0.85": 0.81})
    )
    verdict = decided(answers)
    ps = []
    for one, (first, second, bound, above) in zip(
        verdict.decisions,
        [
            ("mae-0.75", "mae-0.95", 0.0, False),
            ("mae-0.95", "efficient-mae-0.95", 0.0, True),
            ("mae-0.75", "efficient-mae-0.85", -0.01, True),
        ],
        strict=True,
    ):
        gains = np.stack([answers[second][seed] * 1.0 - answers[first][seed] for seed in range(4)])
        means = np.array([*drawn_anew(rng, gains, times)])
        assert one.difference.mean == pytest.approx(gains.mean())
        spread = means.std()
        assert (one.difference.low, one.difference.high) == pytest.approx(
            tuple(np.quantile(means, (0.025, 0.975))), abs=0.25 * spread
        )
        p = np.mean(means <= bound if above else means >= bound)
        assert one.p == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / times) + 1e-3)
        ps.append(one.p)
    first, second, third = sorted(ps)
    by_hand = {first: 3 * first, second: max(3 * first, 2 * second), third: max(3 * first, 2 * second, third)}
    assert [one.p_holm for one in verdict.decisions] == pytest.approx([min(1, by_hand[p]) for p in ps])
    assert [one.shown for one in verdict.decisions] == [one.p_holm <= 0.025 for one in verdict.decisions]


def test_what_is_large_is_shown_and_its_opposite_is_not():
    rng = np.random.default_rng(1)
    worse = {"mae-0.95": 0.5, "efficient-mae-0.95": 0.7, "efficient-mae-0.85": 0.9}
    verdict = decided(answers_of(rng, accuracies(**worse), images=200))
    assert [one.shown for one in verdict.decisions] == [True] * 3 and verdict.answers and not verdict.no_help
    assert min(one.p for one in verdict.decisions) == 1 / 10_001
    better = {"mae-0.95": 0.95, "efficient-mae-0.95": 0.8, "efficient-mae-0.85": 0.6}
    verdict = decided(answers_of(rng, accuracies(**better), images=200))
    assert [one.shown for one in verdict.decisions] == [False] * 3
    assert verdict.no_help, "its whole interval lies below 0"


def test_where_nothing_differs_little_is_shown():
    """Cells of equal chances: of a hundred studies 2.5 may show anything, and of p few are small."""
    rng, shown, ps = np.random.default_rng(2), 0, []
    for _ in range(100):
        answers = answers_of(rng, accuracies(**{"untrained encoder": 0.1}), images=30)
        verdict = decided(answers)
        shown += any(one.shown for one in verdict.decisions[:2])
        ps += [one.p for one in verdict.decisions[:2]]
    assert shown <= 8
    assert 0.02 < np.mean(np.array(ps) <= 0.1) < 0.17
    assert 0.4 < np.mean(ps) < 0.6


def test_equal_answers_help_nothing():
    answers = answers_of(np.random.default_rng(3), accuracies())
    answers["efficient-mae-0.95"] = answers["mae-0.95"]
    verdict = decided(answers)
    second = verdict.decisions[1]
    assert (second.difference.low, second.difference.high, second.p) == (0, 0, 1) and verdict.no_help


def test_an_encoder_that_learned_nothing_answers_nothing():
    rng = np.random.default_rng(4)
    given = accuracies(**{"mae-0.95": 0.2, "untrained encoder": 0.8})
    verdict = decided(answers_of(rng, given, images=200))
    assert verdict.decisions[0].p_holm < 0.025, "it would be shown"
    assert not verdict.answers and not any(one.shown for one in verdict.decisions) and not verdict.no_help


def test_a_seed_that_failed_is_out_of_every_difference_with_it():
    answers = answers_of(np.random.default_rng(5), accuracies())
    del answers["mae-0.95"][2]
    seeds = [one.seeds for one in decided(answers).decisions]
    assert seeds == [[0, 1, 3], [0, 1, 3], [0, 1, 2, 3]]
    for seed in (1, 3):
        del answers["mae-0.95"][seed]
    assert decide(MAIN, Comparison(answers), range(4), planned=20) is None, "of one seed no spread can be told"
    assert decide(STUDIES["table4"], Comparison(answers), range(4), planned=20) is None


def test_the_f_test_is_of_rows_and_seeds():
    values = np.random.default_rng(6).normal(size=(4, 6)) * 0.01 + np.linspace(0, 0.02, 4)[:, None]
    found = rows_and_seeds(values)
    # Less the seeds' means it is that of one way, but for the degrees of freedom.
    one_way = f_oneway(*(values - values.mean(axis=0))).statistic
    expected = one_way * (3 * 5) / (4 * 6 - 4)
    assert found == pytest.approx((expected, f.sf(expected, 3, 15)))
    paired = ttest_rel(values[0], values[1])
    assert rows_and_seeds(values[:2]) == pytest.approx((paired.statistic**2, paired.pvalue))
    assert rows_and_seeds(np.arange(6.0).reshape(2, 3)) is None


def test_controls_are_compared_with_the_method():
    answers = answers_of(np.random.default_rng(7), accuracies(**{"shuffled-difficulties-0.95": 0.4}))
    found = compare_rows(MAIN, Comparison(answers), paper=False)
    assert found is not None
    assert found.rows == ["efficient-mae-0.95", "random-targets-0.95", "shuffled-difficulties-0.95"]
    assert found.p < 0.01 and found.differences["shuffled-difficulties-0.95"].high < 0
    assert "F(2, 6) = " in f_test_in_words(found) and "shuffled-difficulties-0.95 -" in f_test_in_words(found)
    assert list(found.p_holm.values()) == holm([one.p for one in found.differences.values()])
    whole = compare_rows(STUDIES["table4"], Comparison(answers), paper=False)
    assert whole is not None and set(whole.rows) == {cell.name for cell in STUDIES["table4"].cells(False)} & {*CELLS}
    answers["mae-0.85"] = answers["mae-0.75"]  # the same runs, as of what lasts as long as itself
    once = compare_rows(STUDIES["table4"], Comparison(answers), paper=False)
    assert once is not None and [*{*whole.rows} - {*once.rows}] == ["mae-0.85"]


def test_its_cells_and_settings_are_those_said_in_advance():
    assert [(one.first, one.second, one.bound, one.above) for one in HYPOTHESES] == [
        ("mae-0.75", "mae-0.95", 0.0, False),
        ("mae-0.95", "efficient-mae-0.95", 0.0, True),
        ("mae-0.75", "efficient-mae-0.85", -0.01, True),
    ]
    preset = PRESETS["main"]
    told = {
        cell.name: (one["mask_ratio"], one["gamma"], one["beta"], one.get("shuffle"))
        for cell in MAIN.cells(paper=False)
        if (one := preset.pretraining(cell))
    }
    assert told == {
        "mae-0.75": (0.75, 0, None, None),
        "mae-0.85": (0.85, 0, None, None),
        "mae-0.95": (0.95, 0, None, None),
        "efficient-mae-0.85": (0.85, 0.6, 26, None),
        "efficient-mae-0.95": (0.95, 0.6, 26, None),
        "loss-alone-0.95": (0.95, 0.6, None, None),
        "beta-alone-0.95": (0.95, 0, 26, None),
        "random-targets-0.95": (0.95, 0.6, 26, "targets"),
        "shuffled-difficulties-0.95": (0.95, 0.6, 26, "difficulties"),
    }
    assert preset.images * preset.pretraining(MAIN.cells(False)[0])["epochs"] in (180_000, 360_000)


class Stage:
    """Stands for the processes of a study: writes what they would, and fails where it is told."""

    def __init__(self, answers: dict[str, dict[int, np.ndarray]]) -> None:
        self.answers, self.failing, self.done = answers, set[str](), list[str]()

    def run(self, command: list[str], stdout, stderr, env) -> CompletedProcess:
        command = command[command.index("efficient_mae") + 1 :]
        given = dict(zip(command[1::2], command[2::2], strict=False))
        pretrain = Path(given["--out"] if command[0] == "pretrain" else given["--weights"])
        seed, cell = int(pretrain.parent.name.removeprefix("seed-")), pretrain.parents[1].name
        if command[0] == "pretrain":
            self.done.append(f"{cell} {seed}")
            pretrain.mkdir(exist_ok=True)
            (pretrain / "metrics.jsonl").write_text('{"loss": 0.5, "epoch": 1}\n')
            return CompletedProcess(command, int(f"{cell} {seed}" in self.failing))
        names = (cell, *BASELINES) if given["--baselines"] == "true" else (cell,)
        rows = {name: self.answers[name][seed][None] for name in names}
        if "--out" in given:
            assert "--pool" not in given and (given["--seed"], given["--untrained_seed"]) == ("0", str(seed))
            Record("the same", {name: {"ridge": right} for name, right in rows.items()}).write(given["--out"])
        judgements = [
            {"judgements": {judge: {"accuracy": {"mean": right.mean()}} for judge in ("ridge", "logistic", "knn")}}
            for right in rows.values()
        ]
        return CompletedProcess(command, 0, json.dumps({"encoders": judgements}).encode())


def test_a_seed_of_all_cells_is_told_before_all_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data, out = write_labelled(tmp_path / "data", train=16, test=6), tmp_path / "s"
    given = accuracies(**dict.fromkeys(("mae-0.95", *BASELINES), 0.3))
    stage = Stage(answers_of(np.random.default_rng(8), given, images=60))
    stage.failing = {"mae-0.85 1"}
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=stage.run, PIPE=subprocess.PIPE))
    counted = []

    def writing(*arguments) -> StudyResult:
        result = write_study(*arguments)
        counted.append(result.rows[0]["measured"]["seeds"])
        return result

    monkeypatch.setattr(command, "write_study", writing)

    def study() -> tuple[int, dict]:
        status = main(["study", "main", "--preset", "smoke", "--json", *flags(data=data, out=out, seeds=2)])
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    status, result = study()
    assert status == 1 and [*result["failed"]] == ["mae-0.85 seed 1"]
    assert stage.done == [f"{cell} {seed}" for seed in range(2) for cell in CELLS]
    assert len(counted) == 2 and counted[0][0] == 0 and counted[1] == [0, 1]
    verdict = result["verdict"]
    assert (verdict["seeds"], verdict["planned"]) == ([0, 1], 2)
    assert [one["seeds"] for one in verdict["decisions"]] == [[0, 1]] * 3 and verdict["decisions"][0]["shown"]
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["MAE, 0.85"]["measured"]["seeds"] == [0]
    table = (out / "main" / "table.md").read_text()
    assert "seeds 0, 1: 2 of 2" in table and "| shown |" in table and "**F test** of efficient-mae-0.95" in table
    for label in BASELINES:
        assert {"probe", "logistic", "ridge_token", "ridge_grid2", "ridge_blocks"} <= rows[label]["measured"].keys()
        assert rows[label]["difference"]["high"] < 0
        assert f"| {label} |" in table

    # What failed is tried again, and nothing else.
    stage.failing, stage.done = set(), []
    status, result = study()
    assert status == 0 and stage.done == ["mae-0.85 1"]
    # A seed counts when all cells have been judged by what decides; of other features a mean is one of all seeds.
    without = out / "cells" / "beta-alone-0.95" / "seed-1"
    for judge, is_counted in (("probe-token", True), ("probe", False)):
        (without / f"{judge}.json").unlink()
        assert main(["study", "main", "--preset", "smoke", *flags(data=data, out=out, seeds=2, only="mae-0.75")]) == 0
        held = json.loads((out / "main" / "results.json").read_text())
        assert ("verdict" in held) == is_counted and held["rows"][0]["measured"]["seeds"] == [0, 1][: 1 + is_counted]
        told = "seeds 0, 1; mean" if is_counted else "seeds 0 so far of 2; mean"
        assert told in (out / "main" / "table.md").read_text()
        measured = next(row["measured"] for row in held["rows"] if row["cell"] == "beta-alone-0.95")
        assert "ridge_grid2" in measured and ("ridge_token" in measured) == (not is_counted)


@pytest.mark.parametrize(("preset", "train", "subset"), [("main", 16, "1,000"), ("smoke", 11, "32")])
def test_too_few_labels_are_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str, train: int, subset: str
):
    """Of 33 images and three classes 32 leave two classes without any."""
    data = write_labelled(tmp_path / "data", train=train, test=6)
    assert main(["study", "main", "--preset", preset, *flags(data=data, out=tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert f"subsets of {subset} labelled training images, and there are {3 * train} (labels=" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "s").exists()
