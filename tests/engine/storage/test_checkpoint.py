import errno
import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.storage import durable
from efficient_mae.engine.storage.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from efficient_mae.engine.storage.checksums import find_damage


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_adamw(model, 0.1)
    for _ in range(steps):
        one_step(model, optimizer)
    return model, optimizer


def one_step(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, step: int, keep: int = 9, seed: int = 0) -> Path:
    model, optimizer = trained(step, seed)
    return save_checkpoint(folder, step, model, optimizer, {"num_samples": 5}, {"format": "pt"}, keep)


def test_what_is_loaded_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    path = save(tmp_path, 3)
    model, optimizer = trained(0, seed=1)
    state = load_checkpoint(path, model, optimizer)
    assert state == {"step": 3, "num_samples": 5}
    expected, expected_optimizer = trained(3)
    for _ in range(4):
        one_step(model, optimizer)
        one_step(expected, expected_optimizer)
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        assert torch.equal(ours, theirs)


def test_the_last_ones_are_kept(tmp_path: Path):
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000010", "step-00000011"]


def test_a_partial_checkpoint_does_not_count_and_does_not_disturb(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / ".partial-step-00000002").mkdir()
    (tmp_path / ".partial-step-00000002" / "model.safetensors").write_bytes(b"cut short")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002"}


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(durable, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path, 2)
    assert error.value.errno == 28
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001"}


def test_a_disk_that_is_full_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whichever call finds it full, the checkpoint before is whole, nothing half written stays, the next works."""
    calls = [
        (durable, "save_file"),
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "open"),
        (Path, "chmod"),
    ]
    for failing in itertools.count():
        folder = tmp_path / str(failing)
        before = save(folder, 1)
        number = itertools.count()

        def full(call, *arguments, _number=number, _failing=failing, **options):
            if next(_number) == _failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments, **options)

        with monkeypatch.context() as patch:
            for place, name in calls:
                patch.setattr(place, name, _through(full, getattr(place, name)))
            try:
                save(folder, 2)
                break
            except OSError as error:
                assert error.errno == errno.ENOSPC
        assert find_damage(before) == ""
        assert sorted(path.name for path in folder.iterdir()) in (
            ["step-00000001"],
            ["step-00000001", "step-00000002"],
        )
        save(folder, 3, keep=1)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    assert failing >= 12, "a checkpoint takes more calls than that"


def _through(full, call):
    return lambda *arguments, **options: full(call, *arguments, **options)


def test_another_architecture_is_named(tmp_path: Path):
    path = save(tmp_path, 1)
    other = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    with pytest.raises(ValueError, match=r"another architecture, 0.bias is \(4,\) and not \(5,\)"):
        load_checkpoint(path, other, build_adamw(other, 0.1))
    with pytest.raises(ValueError, match="another architecture, with 1.bias"):
        load_checkpoint(path, nn.Sequential(nn.Linear(3, 4)), build_adamw(other, 0.1))


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path):
    path = save(tmp_path, 1)
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "checksums.json",
    }
    json.loads((path / "state.json").read_text())
    for file in path.glob("*.safetensors"):
        length = int.from_bytes(file.read_bytes()[:8], "little")
        json.loads(file.read_bytes()[8 : 8 + length])


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path):
    (tmp_path / "plain").touch()
    files = save(tmp_path / "checkpoints", 1).iterdir()
    assert {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}
