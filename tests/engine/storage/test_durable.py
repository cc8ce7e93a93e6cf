"""What is on the disk when a file counts as written."""

import os
from pathlib import Path

import pytest

from efficient_mae.engine.storage.durable import replace_file


def test_a_replaced_file_and_its_name_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        names = [path.name for path in tmp_path.iterdir()]
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), names))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    replace_file(tmp_path / "config.yaml", b"new")
    # The content under its first name, then, under the name that counts, the folder.
    assert flushed == [
        (tmp_path / ".partial-config.yaml", [".partial-config.yaml"]), (tmp_path, ["config.yaml"]),
    ]  # fmt: skip
    assert (tmp_path / "config.yaml").read_bytes() == b"new"
