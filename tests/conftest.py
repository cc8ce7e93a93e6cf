"""Every test runs with the shapes and types in the package's signatures checked."""

import atexit
import gc
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores test already: threads of theirs, and of what they start, would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
from jaxtyping import AbstractArray, jaxtyped

if TYPE_CHECKING:  # xdist's main process reads this file and tests nothing: it need not wait for torch
    from jsonargparse import ArgumentParser

    from tests.forks import ForkServer

# To look at one item of a list, beartype draws from Python's generator, which tests watch: it gets one of its own.
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(random, "getrandbits", random.Random(0).getrandbits)
    import beartype

    @beartype.beartype
    def _an_argument_that_is_checked(_: list[int]) -> None: ...


# The tower lets an int stand for a float, as Python does.
CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def check(function: Any) -> Any:
    """Check a signature at each call, and that sizes of one letter agree where it has any: few functions do, and most
    of the time goes to that."""
    if isinstance(function, type):
        return jaxtyped(function, typechecker=CHECK)
    try:
        hints = list(get_type_hints(function).values())
    except NameError:  # it isn't there at run time, or not yet, and jaxtyping lets it pass
        return jaxtyped(function, typechecker=CHECK)
    for hint in hints:
        hints.extend(get_args(hint))
    has_sizes = any(isinstance(hint, type) and issubclass(hint, AbstractArray) for hint in hints)
    return jaxtyped(CHECK(function), typechecker=None) if has_sizes else CHECK(function)


jaxtyping.jaxtyped = lambda *, typechecker: check  # which the hook writes above each function and class
jaxtyping.install_import_hook("efficient_mae", None)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What the command line tells its own process, which here is pytest's, is no longer told to the next test's."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def own_index_cache(tmp_path_factory: pytest.TempPathFactory):
    """Indices of shards are kept apart from the user's."""
    from efficient_mae.data.sources import shard_index

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_index, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_yardstick() -> Iterator[None]:
    """`emae bench step` measures a step beside products of matrices, which take seconds at their full size."""
    from efficient_mae.bench import step

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(step.MATMUL_SIDE, "cpu", 64)
        yield


@pytest.fixture(autouse=True, scope="session")
def parsers_made_once() -> Iterator[None]:
    """To make a command's parser takes longer than to use it."""
    from efficient_mae import cli

    make, made = cli.build_parser, {}

    def once(arguments: Sequence[str]) -> "ArgumentParser":
        kind = (cli.called(arguments), cli.config_of(arguments), *cli.COMMANDS)
        if kind not in made:
            made[kind] = make(arguments)
        return made[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """What is flushed outlives the machine's power, which no test cuts; that it is flushed, some look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["ForkServer"]:
    """Starts `emae` at once."""
    from tests.forks import ForkServer

    with ForkServer(tmp_path_factory.mktemp("said")) as server:
        yield server


# Files of long tests: were one of them begun last, the other processes would wait for its end.
LONG = (
    "test_kill", "test_pretrain_processes", "test_preemption", "test_same_results", "test_children", "test_house",
    "test_host", "test_tokens", "test_cli", "test_functions", "test_untrusted", "test_ranges",
)  # fmt: skip


def freeze() -> None:
    """What is there now stays: every run looks for garbage before it starts, and needn't look there."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    freeze()
    atexit.register(gc.unfreeze)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first; those that need a GPU are skipped where there is none, even if asked for."""
    import torch

    items.sort(key=lambda item: item.path.stem not in LONG)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
