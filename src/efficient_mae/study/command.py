"""`emae study`: run a table or figure of the paper, cell by cell, and set what comes of it beside the paper."""

import dataclasses
import datetime
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficient_mae.console import say
from efficient_mae.data import DataChoice, open_labelled, open_source
from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.machine.facts import describe_machine
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.run_directory import refusing_unwritable
from efficient_mae.errors import InputError, did_you_mean
from efficient_mae.ranges import Location, PositiveInt, Settings
from efficient_mae.study.cells import Cell
from efficient_mae.study.labels import write_few_labels
from efficient_mae.study.listing import StudyList, duration, estimate, list_studies, measure_speed, seeds_of
from efficient_mae.study.presets import Preset, find_preset
from efficient_mae.study.probing import check_labels, is_probe
from efficient_mae.study.results.decisions import verdict_in_words
from efficient_mae.study.results.tables import markdown_table
from efficient_mae.study.results.write import StudyResult, seeds_there, write_study
from efficient_mae.study.runs import Place, folder_of, lost_among, plan_made, plan_runs, run_all
from efficient_mae.study.speeds import measure_speeds, settle_length
from efficient_mae.study.studies import STUDIES, Study
from efficient_mae.study.transfer import SIZED, open_transfer

# What `--only` takes for running nothing: the table is written of what there is.
_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class StudyConfig(DataChoice, Settings):
    """Settings of `emae study`."""

    name: str | None = None
    """table1 to table10, fig1 to fig4, cost, main; `emae study NAME` says the same"""
    list: bool = False
    """list the studies with their cells, and the cost and time estimated for this machine; `--list` alone does"""
    preset: str = "cpu"
    """smoke (seconds), cpu (2 cores), main and main14 (2 cores: the main study's, the latter with 14 x 14 patches),
    photographs (2 cores, Figures 2 to 4), gpu (one large GPU) or paper (ImageNet-1k, days on 8 GPUs)"""
    data: Location | None = None
    """labelled images: folder with train/ and val/, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist or -sample;
    Figures 2 to 4 need no labels: photographs-sample; Table 10 takes what emae scenes writes, of the preset paper
    folder with ade20k/, coco/ and imagenet/"""
    out: Location | None = None
    """directory of studies of one preset on the same data; they share its cells, and the same command resumes"""
    only: str | None = None
    """cells to run now, separated by commas, or none (null: all of the study's); the table shows all that is done"""
    seeds: PositiveInt | None = None
    """runs of each cell, with seeds from 0 on, that are run and shown (null: the preset's number is run, and what
    there is beyond is shown too)"""
    jobs: PositiveInt = 1
    """runs at a time"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


def study(config: StudyConfig) -> StudyResult | StudyList:
    """Run what a study still lacks, then write its table, figures and all in `OUT/NAME`; or list all of them.

    Raises:
        InputError: an unknown study, preset or cell, data that is missing or has no labels, or a directory of
            something else.
    """
    preset = find_preset(config.preset)
    if config.list:
        images = None if config.data is None else len(open_source(config.data, choice=config.alone()))
        return list_studies(preset, seeds=config.seeds, images=images, jobs=config.jobs, device=config.device)
    chosen = _find_study(config.name)
    cells = _choose_cells(chosen, preset, config.only)
    if config.out is None:
        raise InputError("out must be given: the directory of the studies (emae study --help)")
    choice, out, seeds = config.alone(), Path(config.out), range(seeds_of(chosen, preset, config.seeds))
    trained = bool(chosen.cells(preset.is_paper))
    held = None if cells else _claim(out, preset, None)
    known = config.data if cells else _written(out, chosen) or held
    head = {
        "study": chosen.name,
        "title": chosen.title,
        "preset": preset.name,
        "data": known if trained else None,
        "command": _command(config),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(find_device(config.device)),
    }

    def write(failed: dict[str, str]) -> StudyResult:
        # Pictures look at weights, which only what was run is known to have.
        alone = config.seeds is not None or not chosen.judges
        shown = seeds if alone else range(max(len(seeds), seeds_there(chosen, preset, out)))
        return write_study({**head, "failed": failed}, chosen, preset, out, shown)

    failed: dict[str, str] = {}
    if cells:
        data, labelled = _open_data(chosen, preset, config.data, choice, out)
        cost = estimate(
            chosen,
            cells,
            preset,
            seeds=len(seeds),
            images=len(open_source(data, choice=choice)),
            jobs=config.jobs,
            speed=measure_speed(config.device) * preset.gpus(config.device),
        )
        say(
            f"{chosen.name}: {len(cells)} cells x {len(seeds)} seeds, {cost['flops']:.1e} FLOPs, about "
            f"{duration(cost['seconds'])} here if none of it is done yet"
        )
        place = Place(out, data, choice, labelled, config.device)
        failed = _run(cells, chosen, preset, seeds, place, config.jobs, write)
    return write(failed)


def _run(
    cells: Sequence[Cell],
    chosen: Study,
    preset: Preset,
    seeds: Sequence[int],
    place: Place,
    jobs: int,
    write: Callable[[dict[str, str]], object],
) -> dict[str, str]:
    """Run what cells need, time them where that is asked for, then run them; why, by name, for those that failed.

    Args:
        write: the study, as far as it is done, which judges have something to say of after each seed.
    """
    gpus, judges = preset.gpus(place.device), preset.judges_of(chosen)

    def settled() -> list[Cell]:
        return [one for cell in cells if (one := settle_length(cell, preset, place.out)) is not None]

    runs = plan_runs(settled(), preset, seeds, judges, place)
    done = {run.folder for run in runs if run.is_done()}
    lacking = [
        (cell, seed)
        for cell in cells
        for seed in seeds
        if (one := settle_length(cell, preset, place.out)) is None
        or folder_of(place.out, preset.directory(one), seed) not in done
    ]
    made = plan_made(lacking, preset, place)
    lost = lost_among([*made, *runs])
    if lost and not chosen.judges:
        others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise InputError(f"{next(iter(lost.values()))}{others}")
    failed = lost | run_all([run for run in made if run.name not in lost], jobs, gpus)
    failed |= measure_speeds(cells, preset, place, jobs)
    ready = [
        run
        for run in plan_runs(settled(), preset, seeds, judges, place)
        if not failed.keys() & {run.name, *(f"{one} seed {run.seed}" for one in run.needed)}
    ]

    def write_so_far(others: dict[str, str]) -> None:
        write(failed | others)

    return failed | run_all(ready, jobs, gpus, write_so_far if chosen.judges else None)


def _find_study(name: str | None) -> Study:
    if name is None:
        raise InputError(f"name a study: {', '.join(STUDIES)} (emae study --list)")
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}{did_you_mean(name, STUDIES)}; studies: {', '.join(STUDIES)}")
    return STUDIES[name]


def _choose_cells(chosen: Study, preset: Preset, only: str | None) -> list[Cell]:
    cells = {cell.name: cell for cell in chosen.cells(preset.is_paper)}
    if only is None or only == _NONE:
        return list(cells.values()) if only is None else []
    names = dict.fromkeys(name.strip() for name in only.split(","))
    for name in names:
        if name not in cells:
            known = ", ".join((*cells, _NONE))
            raise InputError(
                f"only={name!r}: no cell of {chosen.name}{did_you_mean(name, cells)}; its cells: {known}"
            )
    return [cells[name] for name in names]


def _open_data(
    chosen: Study, preset: Preset, data: str | None, choice: DataChoice, out: Path
) -> tuple[str, str | None]:
    """Check data and directory; return what to pre-train on, and what judges take if the study has any."""
    if data is None:
        raise InputError(f"data must be given: {chosen.name} trains on it (emae study --help)")
    if chosen.transfers:
        return _open_transfer(chosen, preset, data, choice, out)
    if not chosen.judges:
        open_source(data, choice=choice)
        _claim(out, preset, data)
        return data, None
    labelled = open_labelled(data, choice=choice)
    probed = [is_probe(judge) for judge in preset.judges_of(chosen)]
    if any(probed):
        check_labels(data, labelled, preset)
    _claim(out, preset, data)
    if all(probed):  # which draws few labels itself
        return data, data
    if preset.labels is None or preset.labels >= len(labelled.train):
        return data, data
    folder = out / "labelled"
    write_few_labels(labelled, preset.labels, folder)
    return data, str(folder)


def _open_transfer(chosen: Study, preset: Preset, data: str, choice: DataChoice, out: Path) -> tuple[str, str]:
    if preset.name not in SIZED:
        raise InputError(f"preset={preset.name}: {chosen.name} has no sizes for it; it has for {', '.join(SIZED)}")
    cell = chosen.cells(preset.is_paper)[0]
    judges = {judge: preset.settings(judge, cell) for judge in chosen.judges}
    pretrained = open_transfer(data, choice, judges, preset.is_paper)
    _claim(out, preset, pretrained)
    return pretrained, data


def _written(out: Path, chosen: Study) -> str | None:
    """The data that a study was last written of."""
    file = out / chosen.name / "results.json"
    return json.loads(file.read_bytes())["data"] if file.is_file() else None


def _claim(out: Path, preset: Preset, data: str | None) -> str | None:
    """Make the directory that of this preset's studies on these data, or find that it is; return its data.

    Raises:
        InputError: it is another's, or cannot be written.
    """
    file = out / "study.json"
    held = json.loads(file.read_bytes()) if file.is_file() else None
    if held is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} is neither empty nor a directory of studies; name another")
    held = held or {"preset": preset.name, "data": None}
    if held["preset"] != preset.name:
        raise InputError(f"out={out} holds studies of preset {held['preset']}, not {preset.name}; name another")
    if data and held["data"] and data != held["data"]:
        raise InputError(f"out={out} holds studies on data={held['data']}, not {data}; name another")
    with refusing_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps({"preset": preset.name, "data": data or held["data"]}).encode())
    return data or held["data"]


def _command(config: StudyConfig) -> str:
    """The command line that says the same."""
    given = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name != "name" and (value := getattr(config, field.name)) != field.default
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return shlex.join(["emae", "study", str(config.name), *flags])


def show_study(result: StudyResult | StudyList, console: Console) -> None:
    """Print the list, or a study's table and where the rest is."""
    if isinstance(result, StudyList):
        title = f"preset {result.preset}: {result.summary}; times estimated for {result.images:,} images here"
        table = Table("study", "", "cells", "FLOPs", "time", title=title)
        for row in result.studies:
            cells = f"{len(row.cells)} x {row.seeds}" if row.cells else ""
            cost = (f"{row.flops:.1e}", duration(row.seconds)) if row.cells else ("", "seconds")
            table.add_row(row.name, row.title, cells, *cost)
        console.print(table)
        return
    if result.rows:
        console.print(markdown_table(result.rows), markup=False, highlight=False)
    if result.verdict is not None:
        console.print(verdict_in_words(result.verdict), markup=False, highlight=False)
    for name, reason in result.failed.items():
        console.print(f"failed: {name}: {reason}", markup=False, style="red")
    if result.failed:
        console.print("the same command again tries what failed and keeps what is done", markup=False)
    console.print(f"table, figures and all: {result.written}", markup=False)
