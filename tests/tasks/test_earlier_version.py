"""Runs that were begun by the version of commit 2b23c41, whose config.yaml names neither task nor version.

`earlier/make.py` made them. Where processor and libraries are those of then, what comes of them is the same to the
bit. Elsewhere sums are added up in another order, and the crops' last bits may differ: losses, features and weights
then agree to within rounding, while order and masks, which are integers drawn from the seed, are the same everywhere.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae import __version__
from efficient_mae.backbones import sizes
from efficient_mae.cli import main
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.errors import InputError
from efficient_mae.tasks.classify.finetune import FinetuneConfig, finetune
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, linear_probe
from efficient_mae.tasks.features import extract_features
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.registry import TASKS

from .conftest import flags
from .earlier.machine import machine
from .labelled import write_labelled

EARLIER = Path(__file__).parent / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
STOPPED, STEPS = 6, 8
SAME_BITS = machine() == EXPECTED["machine"]


@pytest.fixture(scope="module", autouse=True)
def as_it_was() -> Iterator[None]:
    """The model's size, which has no name here, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIZES, "micro", sizes.Size(16, 1, 2, decoder_embed_dim=16))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run that was stopped half way."""
    return shutil.copytree(EARLIER / "run", tmp_path / "run")


def test_it_is_resumed_to_the_same_end(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    batches, seen = Run.batches, []

    def noting(self: Run, first_step: int):
        for batch in batches(self, first_step):
            seen.append((batch.indices, batch.masks.value.mask))
            yield batch

    monkeypatch.setattr(Run, "batches", noting)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert not {"task", "version"} & settings.keys()
    given = {name: value for name, value in settings.items() if value is not None} | {"out": run}
    assert main(["pretrain", *flags(**given), "--json"]) == 0
    said = capsys.readouterr().err
    assert f"after step {STOPPED} of {STEPS}" in said
    assert "begun by an early version, whose P2Dist at patch size 4 may have been another" in " ".join(said.split())
    drawn = b"".join(part.numpy().tobytes() for pair in seen[: STEPS - STOPPED] for part in pair)
    assert hashlib.sha256(drawn).hexdigest() == EXPECTED["order_and_masks"]
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(EXPECTED["loss"], rel=0 if SAME_BITS else 1e-3)
    trained = load_file(run / "encoder.safetensors")
    for name, weight in load_file(EARLIER / "encoder.safetensors").items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=0 if SAME_BITS else 1e-3)
    if SAME_BITS:
        optimizer = run / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors"
        assert hashlib.sha256(optimizer.read_bytes()).hexdigest() == EXPECTED["optimizer"]
    record = read_settings(run)
    assert (record.task, record.version) == ("pretrain", __version__)


def test_its_encoder_is_read(tmp_path: Path):
    encoder = emae.load(EARLIER / "encoder.safetensors").eval()
    image = torch.linspace(-1, 1, 28 * 28).square().reshape(1, 1, 28, 28)
    features = extract_features(encoder, image, "avg")[0].tolist()
    assert features == pytest.approx(EXPECTED["features"], rel=0 if SAME_BITS else 1e-4, abs=0 if SAME_BITS else 1e-5)
    data, weights = write_labelled(tmp_path / "labelled"), str(EARLIER / "encoder.safetensors")
    judged = knn(KnnConfig(weights=weights, data=str(data), k=5, device="cpu", num_workers=0))
    assert vars(judged.accuracy) == pytest.approx(EXPECTED["knn"], abs=0 if SAME_BITS else 1 / 36 + 1e-9)


class Reached(Exception):  # noqa: N818
    """The directory was taken for the run's own."""


@pytest.fixture
def not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_):
        raise Reached

    monkeypatch.setattr(Run, "_train", reached)


def rewrite(run: Path, drop: tuple[str, ...] = (), **add) -> None:
    """The run's config.yaml without some settings and with others."""
    file = run / "config.yaml"
    settings = yaml.safe_load(file.read_text()) | add
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if name not in drop}))


SETTINGS = PretrainConfig.of("mae_vit_micro_patch4")


def config(run: Path, **changed) -> PretrainConfig:
    return read_settings(EARLIER / "run").restore(SETTINGS, out=str(run), **changed)


# Not null by default, one of them a tuple: settings as a later version may add.
LATER = ("hflip", "crop_scale", "repeats", "norm_pix_loss")


def test_a_setting_that_came_later_has_its_default(run: Path, not_trained: None):
    rewrite(run, drop=LATER)
    with pytest.raises(InputError, match=r"another configuration: crop_scale \[0.2, 1.0\] there, .*; hflip True"):
        pretrain(config(run, crop_scale=(0.5, 1.0), hflip=False))
    with pytest.raises(Reached):
        pretrain(config(run))
    assert read_settings(run).settings["crop_scale"] == [0.2, 1.0]


def test_a_setting_that_is_no_more(run: Path, not_trained: None):
    rewrite(run, solarize=0.2, momentum=None)
    with pytest.raises(InputError, match=r"another configuration: solarize 0.2 there, unknown here$"):
        pretrain(config(run))
    with pytest.raises(InputError, match=r"by an early version: solarize is 0.2, and no setting of "):
        read_settings(run).restore(SETTINGS)
    rewrite(run, solarize=None)
    with pytest.raises(Reached):
        pretrain(config(run))
    rewrite(run, drop=("data",))
    with pytest.raises(InputError, match=r"written by \d.*: data is missing"):
        read_settings(run).restore(SETTINGS)


def test_a_directory_of_another_task(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_labelled(tmp_path / "labelled", train=4, test=2)
    small = {"data": str(data), "out": str(run), "from_scratch": True, "model": "mae_vit_micro_patch4"}
    for _ in "as it was", "with the task written down":
        with pytest.raises(InputError, match=f"out={re.escape(str(run))} holds a run of pretrain, not of finetune;"):
            finetune(FinetuneConfig(**small, device="cpu", batch_size=4))
        with pytest.raises(InputError, match="holds a run of pretrain, not of linear-probe;"):
            linear_probe(LinearProbeConfig(**small, device="cpu", batch_size=4))
        rewrite(run, task="pretrain", version="0.2.0")
    assert main(["finetune", "--config", str(run / "config.yaml")]) == 2
    assert f"config={run / 'config.yaml'}: of a run of pretrain, not of finetune" in capsys.readouterr().err
    rewrite(run, gama=1)
    assert main(["pretrain", "--config", str(run / "config.yaml")]) == 2
    assert "unknown key 'gama' in the configuration; did you mean gamma?" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["finetune", "linear-probe"])
def test_the_task_of_its_settings(task: str, tmp_path: Path):
    shutil.copy(EARLIER / f"{task}.yaml", tmp_path / "config.yaml")
    record = read_settings(tmp_path)
    assert (record.task, record.version) == (task, None)
    assert record.restore(TASKS[task].config, epochs=3).epochs == 3


@pytest.mark.parametrize(("written", "said"), [
    ({"data": "photos"}, "its config.yaml is of no training task"),
    ({"task": "caption"}, "its config.yaml is of the task 'caption', which is unknown here"),
    ({"task": "pretrain", 3: 4}, "holds no settings, each with a name"),
    ({"task": ["pretrain"]}, "task=['pretrain']: must be a name"),
    ({"task": "finetune", "version": "9.0", "epochs": 1, "blur": 3}, "written by 9.0: blur is 3, and no setting of"),
])  # fmt: skip
def test_what_cannot_be_replayed(written: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    row = {"step": 1, "world_size": 1, "accum_iter": 1, "rollbacks": 0}
    (tmp_path / "skipped.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["replay", "--run", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
