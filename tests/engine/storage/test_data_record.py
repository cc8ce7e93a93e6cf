from pathlib import Path

import pytest

from efficient_mae.data import open_source
from efficient_mae.engine.storage.data_record import DataRecord, absolute, is_same_place
from tests.tasks.conftest import write_images


def test_places_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "fashion-mnist").mkdir()
    assert absolute("photos/") == absolute("./photos") == str(tmp_path / "photos")
    assert absolute("wds:a/{0..9}.tar") == f"wds:{tmp_path}/a/{{0..9}}.tar"
    assert absolute("hf:set") == f"hf:{tmp_path}/set" and absolute("local-dir:set") == f"local-dir:{tmp_path}/set"
    for name in ("hf:user/set", "timm:vit_base_patch16_224.mae", "fashion-mnist", "fashion-mnist-sample"):
        assert absolute(name) == name
    assert is_same_place("hf:set", f"hf:{tmp_path}/set/") and not is_same_place("hf:set", "set")
    assert is_same_place(None, None) and not is_same_place(None, "set")


def test_images_are_told_by_number_and_names(tmp_path: Path):
    data = write_images(tmp_path / "a", 5)
    moved = write_images(tmp_path / "b" / "c", 5)
    here, there = (DataRecord.of(open_source(str(folder))) for folder in (data, moved))
    assert here.is_same(there) and here.names
    (moved / "000.png").rename(moved / "00.png")
    assert not here.is_same(DataRecord.of(open_source(str(moved))))
