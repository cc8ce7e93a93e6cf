"""What ends several processes is said, and said once, whether one of them meets it or all do."""

import sys
from pathlib import Path

import pytest

from tests.forks import ForkServer
from tests.tasks.conftest import TINY, flags, run, write_images

COMMAND = ["pretrain", *flags(**TINY | {"num_workers": 0}, data="data", out="run", batch_size=8, epochs=1)]
SAID = "emae: no such folder: 'data'"


@pytest.fixture(params=["alone", "all", "another"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Where the processes start: neither, or all but one, find the data."""
    found = [tmp_path / "first", tmp_path / "second"]
    for folder, wanted in zip(
        found, {"alone": (True, False), "all": (False, False), "another": (False, True)}[request.param]
    ):
        folder.mkdir()
        if wanted:
            write_images(folder / "data", 16)
    return found


def test_once_whoever_meets_it(folders: list[Path], server: ForkServer):
    ended = server.start(COMMAND, 2, folders=folders).wait()
    assert "".join(one.stderr for one in ended).count(SAID) == 1
    for one, folder in zip(ended, folders, strict=True):
        lost = (folder / "data").exists()
        assert one.status == (1 if lost else 2)
        assert ("lost another" in one.stderr) == lost and "Traceback" not in one.stderr


@pytest.mark.parametrize(
    ("second", "said"),
    [(17, "sees 17 images and the first 16"), (16, "sees 16 images and the first 16, by other names")],
)
def test_all_must_see_the_same_images(second: int, said: str, server: ForkServer, tmp_path: Path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, images in zip(folders, (16, second), strict=True):
        write_images(folder / "data", images)
    (folders[1] / "data" / "000.png").rename(folders[1] / "data" / "other.png")
    ended = server.start(COMMAND, 2, folders=folders).wait()
    assert [one.status for one in ended] == [2, 2]
    assert "".join(one.stderr for one in ended).count(f"emae: data=data: process 1 {said}") == 1
    assert not any((folder / "run").exists() for folder in folders)


def test_before_they_have_met_the_first_of_a_machine_speaks(server: ForkServer):
    ended = server.start(["pretrain", "--dta", "x"], 2).wait()
    assert [one.status for one in ended] == [2, 2]
    assert "did you mean --data?" in ended[0].stderr and ended[1].stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["alone"], indirect=True)
def test_under_torchrun(folders: list[Path], tmp_path: Path):
    script = tmp_path / "script.py"
    places = [str(folder) for folder in folders]
    script.write_text(
        f"import os, sys; os.chdir({places}[int(os.environ['RANK'])])\n"
        "from efficient_mae.__main__ import main; sys.exit(main())"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run([*torchrun, str(script), *COMMAND])
    assert done.returncode == 1 and done.stderr.count("no such folder") == 1 and SAID in done.stderr
