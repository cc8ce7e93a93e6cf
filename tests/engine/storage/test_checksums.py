"""Damage to a checkpoint's files is found, whatever it is."""

import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.storage import checksums as module
from efficient_mae.engine.storage.checkpoint import save_checkpoint
from efficient_mae.engine.storage.checksums import CHECKSUMS, find_damage, last_whole, refuse_damage
from efficient_mae.errors import InputError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def save(folder: Path, step: int) -> Path:
    model = nn.Sequential(nn.Linear(30, 40))
    optimizer = build_adamw(model, 0.1)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    return save_checkpoint(folder, step, model, optimizer, {"num_samples": 5}, {"format": "pt"}, keep=9)


def flip(file: Path, bit: int = 3) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def test_they_are_the_crc_32_of_each_file(tmp_path: Path):
    checkpoint = save(tmp_path, 1)
    recorded = json.loads((checkpoint / CHECKSUMS).read_text())
    assert recorded == {name: f"{zlib.crc32((checkpoint / name).read_bytes()):08x}" for name in FILES}
    assert find_damage(checkpoint) == ""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "{} isn't what was written"), (cut, "{} isn't what was written"), (zero, "{} isn't what was written"),
        (Path.unlink, "{} is missing"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, name: str, spoil: Callable[[Path], None], said: str):
    checkpoint = save(tmp_path, 1)
    spoil(checkpoint / name)
    assert find_damage(checkpoint) == said.format(name)
    with pytest.raises(InputError, match=f"step-00000001: damaged .{name}"):
        refuse_damage(checkpoint, name)


@pytest.mark.parametrize("spoil", [cut, zero, Path.unlink, lambda file: file.write_text("7")])
def test_damage_of_the_checksums_themselves(tmp_path: Path, spoil: Callable[[Path], None]):
    checkpoint = save(tmp_path, 1)
    spoil(checkpoint / CHECKSUMS)
    assert find_damage(checkpoint).startswith("checksums.json can't be read (")


def test_a_name_among_them_leads_nowhere_else(tmp_path: Path):
    checkpoint = save(tmp_path, 1)
    (tmp_path / "other").write_bytes(b"")
    (checkpoint / CHECKSUMS).write_text(json.dumps({"../other": f"{zlib.crc32(b''):08x}"}))
    assert find_damage(checkpoint) == "../other is missing"


def test_the_last_whole_one_is_taken(tmp_path: Path):
    one, two, three = (save(tmp_path, step) for step in (1, 2, 3))
    assert last_whole([], ALONE) == (None, {})
    assert last_whole([one, two, three], ALONE) == (three, {})
    flip(three / FILES[0])
    flip(two / FILES[2])
    problems = {three: f"{FILES[0]} isn't what was written", two: f"{FILES[2]} isn't what was written"}
    assert last_whole([one, two, three], ALONE) == (one, problems)
    (one / FILES[1]).unlink()
    with pytest.raises(InputError, match="no checkpoint is whole .step-00000003: model.* nothing was changed"):
        last_whole([one, two, three], ALONE)


@dataclass(frozen=True, kw_only=True)
class InThread(Processes):
    """A thread that stands for a process."""

    values: list
    all_there: threading.Barrier

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.all_there.wait()
        values = list(self.values)
        self.all_there.wait()
        return values


def test_processes_share_the_reading_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    flip(two / FILES[1])  # which only the second process reads
    read = []

    def noted(file: Path) -> str:
        read.append((threading.current_thread().name, file.name))
        return checksum(file)

    checksum = module._checksum
    monkeypatch.setattr(module, "_checksum", noted)
    values, all_there, cpu = [None] * 2, threading.Barrier(2), torch.device("cpu")
    found: dict[int, Any] = {}

    def look(rank: int) -> None:
        found[rank] = last_whole([one, two], InThread(rank, 2, cpu, values=values, all_there=all_there))

    threads = [threading.Thread(target=look, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found[0] == found[1] == (one, {two: f"{FILES[1]} isn't what was written"})
    assert sorted(read) == sorted(2 * [("0", FILES[0]), ("1", FILES[1]), ("0", FILES[2])])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_damaged(tmp_path: Path):
    checkpoint = save(tmp_path, 1)
    (checkpoint / FILES[0]).chmod(0)
    assert find_damage(checkpoint) == f"{FILES[0]} can't be read (Permission denied)"
