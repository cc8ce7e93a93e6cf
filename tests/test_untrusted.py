"""Checkpoints, exports, configurations and data are data: hostile ones end in one line, and nothing of them is run.

What a hostile file would do, would it be run: make a folder called `trace`.
"""

import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet

from efficient_mae.cli import main
from efficient_mae.data import open_source
from efficient_mae.data.sources import shard_index
from tests.tasks.conftest import TINY, flags, write_images

SMALL = {**TINY, "num_workers": 0, "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, labelled and split, and a finished `run` on it."""
    folder = tmp_path_factory.mktemp("base")
    for split in ("train", "test"):
        for label in ("circle", "dot"):
            write_images(folder / "data" / split / label, 12)
    assert main(["pretrain", *flags(data=folder / "data", out=folder / "run", **SMALL)]) == 0
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A run that a test may spoil."""
    return shutil.copytree(base / "run", tmp_path / "run")


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """Not there afterwards."""
    yield tmp_path / "trace"
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with status 2 and one line; return that."""

    def check(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith("pre-training ")]
        assert (status, out, len(said)) == (2, "", 1), err[-2000:]
        assert said[0].startswith("emae: ") and len(said[0]) < 1000 and said[0].isprintable()
        return said[0]

    return check


def bomb() -> str:
    """Nine lines that stand for a billion values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]) + "\n"


def hostile_yaml(trace: Path) -> dict[str, bytes]:
    return {
        "runs a command": f"data: !!python/object/apply:os.mkdir ['{trace}']\nout: x\n".encode(),
        "makes an object": b"data: !!python/object/new:type {args: [a, [], {}]}\nout: x\n",
        "names a function": b"data: !!python/name:os.system\nout: x\n",
        "bomb": bomb().encode(),
        "holds itself": b"data: &a [*a]\nout: x\n",
        "deep": b"data: " + b"[" * 5000 + b"]" * 5000,
        "deep, indented": "".join(f"{' ' * n}a:\n" for n in range(1000)).encode(),
        "control characters": b"data: \0\x1b[2J\n",
        "no UTF-8": b"data: \xff\xfe\n",
        "a list": b"- 1\n",
        "a number beyond all": b"data: x\nout: x\nseed: " + b"9" * 9999,
        "data that is no name": b"data: {a: b}\nout: x\n",
    }


HOSTILE_YAML = hostile_yaml(Path())


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_configurations(kind: str, base: Path, run: Path, trace: Path, tmp_path: Path, refused):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(hostile_yaml(trace)[kind])
    refused("pretrain", "--config", file)
    file.replace(run / "config.yaml")
    if "number" not in kind:  # a run's own settings are compared, not used
        refused("knn", "--weights", run, "--num_workers", 0)
        refused("report", "--run", run)
    refused("pretrain", *flags(data=base / "data", out=run, **SMALL))


def test_the_traps_work(trace: Path):
    yaml.unsafe_load(hostile_yaml(trace)["runs a command"])
    assert trace.exists()
    trace.rmdir()
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists()
    trace.rmdir()


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickles(run: Path, trace: Path, tmp_path: Path, refused):
    hostile = pickle.dumps(Hostile(trace))
    for name in ("a.pth", "a.pt", "a.bin", "a.safetensors", "a.pkl"):
        for write in (lambda file: file.write_bytes(hostile), lambda file: torch.save(Hostile(trace), file)):
            write(tmp_path / name)
            for command in (
                ["export", "--out", tmp_path / "out"],
                ["knn"],
                ["linear-probe", "--data", "x", "--out", "y"],
            ):
                refused(*command, "--weights", tmp_path / name)
    checkpoint = next((run / "checkpoints").iterdir())
    (checkpoint / "model.safetensors").write_bytes(hostile)
    refused("export", "--weights", run, "--out", tmp_path / "out")


def test_tensors_larger_than_their_file(tmp_path: Path, refused):
    """A hundred bytes that say they are a gigabyte and a terabyte."""
    for number in (2**28, 2**38):
        shape = {"patch_embed.proj.weight": torch.zeros(1).expand(192, 3, 16, 16), "norm.weight": torch.ones(192)}
        torch.save({"model": shape | {"pos_embed": torch.zeros(1).expand(1, number, 192)}}, tmp_path / "a.pth")
        assert "larger than the file" in refused("knn", "--weights", tmp_path / "a.pth")


def safetensors(header: object, tail: bytes = bytes(4)) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + tail


def describing(**model: object) -> bytes:
    usual = dict(img_size=[8, 8], patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=1)
    content = json.dumps({"model": usual | model, "mean": [0], "std": [1]})
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return safetensors({"__metadata__": {"efficient_mae": content}, "cls_token": one})


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE_SAFETENSORS = {
    "a header of exabytes": struct.pack("<Q", 1 << 62) + b"{}",
    "cut": b"\x08",
    "nothing": b"",
    "overlap": safetensors({"a": ONE, "b": ONE}),
    "a hole": safetensors({"a": ONE | {"data_offsets": [4, 8]}}, bytes(8)),
    "beyond the end": safetensors({"a": ONE | {"shape": [9], "data_offsets": [0, 36]}}),
    "sizes that overflow": safetensors({"a": ONE | {"shape": [1 << 40, 1 << 40]}}),
    "a deep header": safetensors(b'{"a":' + b"[" * 99999 + b"}"),
    "a deep description": safetensors({"__metadata__": {"efficient_mae": "[" * 99999}, "a": ONE}),
    "no description": safetensors({"a": ONE}),
    "a model of exabytes": describing(img_size=[10**9, 10**9], patch_size=1, embed_dim=10**6),
    "a model without end": describing(depth=10**9),
    "no patch": describing(patch_size=0),
    "negative": describing(patch_size=-4, embed_dim=-8),
    "words for numbers": describing(img_size="ab", patch_size=[], embed_dim={}, depth="x"),
    "not a number": describing(embed_dim=float("nan"), depth=float("inf")),
}


@pytest.mark.parametrize("kind", HOSTILE_SAFETENSORS)
def test_weights(kind: str, run: Path, tmp_path: Path, refused):
    file = tmp_path / "a.safetensors"
    file.write_bytes(HOSTILE_SAFETENSORS[kind])
    refused("export", "--weights", file, "--out", tmp_path / "out")
    refused("info", "--weights", file)
    file.replace(next((run / "checkpoints").iterdir()) / "model.safetensors")
    refused("report", "--run", run)
    assert not (tmp_path / "out").exists()


def test_a_model_larger_than_its_weights(run: Path, tmp_path: Path, refused):
    """Real weights whose header tells of a deeper model, or one for larger images."""
    file = run / "encoder.safetensors"
    original = file.read_bytes()
    length = struct.unpack("<Q", original[:8])[0]
    for name, value in (("depth", 10**7), ("img_size", [10**6, 10**6]), ("decoder_embed_dim", None)):
        header = json.loads(original[8 : 8 + length])
        content = json.loads(header["__metadata__"]["efficient_mae"])
        content["model"][name] = value
        header["__metadata__"]["efficient_mae"] = json.dumps(content)
        file.write_bytes(safetensors(header, original[8 + length :]))
        if value is not None:
            refused("export", "--weights", file, "--out", tmp_path / "out")
        refused("export", "--format", "transformers", "--weights", file, "--out", tmp_path / "out")


HOSTILE_JSON = {
    "deep": b"[" * 99999,
    "deep objects": b'{"a":' * 99999,
    "no UTF-8": b"\xff\xfe\xff",
    "nothing": b"",
    "an endless number": b"9" * 9999,
    "a list": b"[1, [2]]",
    "a word": b'"../../x"',
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_a_runs_records(kind: str, base: Path, run: Path, tmp_path: Path, refused):
    content = HOSTILE_JSON[kind]
    for name in ("damaged.json", "knn.json", "machine.json"):
        before = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_bytes(content)
        assert name in refused("report", "--run", run)
        (run / name).unlink() if before is None else (run / name).write_bytes(before)
    (run / "metrics.jsonl").write_bytes(content)
    assert main(["report", "--run", str(run)]) == 0  # rows that can't be read are left out
    (run / "encoder.safetensors").unlink()  # so that the run goes on
    (run / "damaged.json").write_bytes(content)
    assert "damaged.json" in refused("pretrain", *flags(data=base / "data", out=run, **SMALL))
    (run / "damaged.json").unlink()


@pytest.mark.parametrize("row", [{"step": 1, "loss": "<b>"}, {"step": 1, "loss": 1, "epoch": 1, "lr": float("nan")}])
def test_rows_without_figures(row: dict, run: Path, refused):
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "metrics.jsonl: the row of step 1" in refused("report", "--run", run)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "architectures": ["Evil"]},
        {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "evil.Model"}}},
        {"num_channels": "x"},
        {"model_type": ["vit_mae"]},
        {"model_type": "../../evil"},
        {"hidden_size": -1},
    ],
)
def test_transformers_folders(config: dict, trace: Path, tmp_path: Path, refused):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit_mae"} | config))
    code = f"import os\nos.mkdir({str(trace)!r})\nclass Config: pass\nclass Model: pass\n"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(code)
    torch.save(Hostile(trace), folder / "pytorch_model.bin")
    refused("export", "--weights", folder, "--out", tmp_path / "out")
    index = {"metadata": {}, "weight_map": {"vit.x": "../../../../etc/passwd", "decoder.x": "/etc/shadow"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("export", "--weights", folder, "--out", tmp_path / "out")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), 7).save(file, "PNG")
    return file.getvalue()


def test_datasets_that_bring_code_or_point_elsewhere(trace: Path, tmp_path: Path, refused, network: list):
    folder = tmp_path / "set"
    folder.mkdir()
    code = f"import os\nos.mkdir({str(trace)!r})\n"
    (folder / "set.py").write_text(code)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: https://example.com/x.parquet\n---\n"
    )
    np.savez(folder / "a.npz", np.array([Hostile(trace)], dtype=object))
    (folder / "a.pkl").write_bytes(pickle.dumps(Hostile(trace)))
    for spec in (folder, folder / "set.py", folder / "a.pkl", folder / "a.npz"):
        refused("pretrain", *flags(data=f"hf:{spec}", out=tmp_path / "run", **SMALL))
    saved = tmp_path / "saved"
    cell = {"bytes": png(), "path": None}
    features = datasets.Features({"photo": datasets.Image()})
    cells = [cell, {"bytes": None, "path": "/dev/zero"}, {"bytes": None, "path": "https://example.com/a.png"}]
    table = datasets.Dataset.from_dict({"photo": cells}, features=features).data.table
    saved.mkdir()
    parquet.write_table(table, saved / "a.parquet")  # datasets itself would put the images into the file
    source = open_source(f"hf:{saved}")
    assert source.image(0).getpixel((0, 0)) == 7
    for index, reason in ((1, "not a file"), (2, "No such file")):
        with pytest.raises(ValueError, match=reason):
            source.image(index)
    (saved / "state.json").write_text("[" * 99999)
    refused("pretrain", *flags(data=f"hf:{saved}", out=tmp_path / "run", **SMALL))
    assert not network


def test_shards_that_climb_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run on shards whose members would overwrite files, were they unpacked, makes none but its own."""
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "0.tar", "w") as tar:
        for number in range(8):
            for prefix in ("../../climbed", str(tmp_path / "absolute"), "\x1b]0;pwned\a[red]"):
                info = tarfile.TarInfo(f"{prefix}{number}.png")
                info.size = len(png())
                tar.addfile(info, io.BytesIO(png()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    settings = flags(data=f"wds:{tmp_path}/data", out=tmp_path / "run", **SMALL)
    assert main(["pretrain", *settings]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}
    assert not list(tmp_path.parent.glob("climbed*")) and not list(tmp_path.parent.parent.glob("climbed*"))


def test_a_hostile_index_of_a_shard(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_index, "cache_folder", lambda: tmp_path / "cache")
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(png())
        tar.addfile(info, io.BytesIO(png()))
    assert len(open_source(f"wds:{path}")) == 1
    (entry,) = (tmp_path / "cache").iterdir()
    with zipfile.ZipFile(entry) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    objects = io.BytesIO()
    np.save(objects, np.array([Hostile(trace)], dtype=object))
    for name in parts:
        with zipfile.ZipFile(entry, "w") as archive:
            for other, content in parts.items():
                archive.writestr(other, objects.getvalue() if other == name else content)
        source = open_source(f"wds:{path}")
        assert len(source) == 1 and source.image(0).getpixel((0, 0)) == 7


def test_markup_in_names_settings_and_figures(base: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing of it is markup in the report, or reaches the terminal as more than text."""
    script = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{ 7 * 191 }}"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"data": f"/nowhere/{script}", "model": script, "[bold]extra": script, script: 1}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "damaged.json").write_text(json.dumps([[script, script]]))
    (run / "machine.json").write_text(json.dumps({script: script, "nested": {script: [script]}}))
    knn = {"k": 1, "train_images": 2, "test_images": 3}
    (run / "knn.json").write_text(
        json.dumps(knn | {"accuracy": {"raw_pixels": 0.1, "untrained": 0.2, "trained": 0.3}, script: script})
    )
    assert main(["report", "--run", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert not any(part in page for part in ("<script>", "<img src=x", "1337"))
    hostile_folder = run.with_name("[red]x[bold]\x1b[2J<b>")
    run.rename(hostile_folder)
    capsys.readouterr()
    assert main(["report", "--run", str(hostile_folder)]) == 0
    out, _ = capsys.readouterr()
    assert "[red]x[bold]" in out and "\x1b" not in out
    assert "<b>" not in (hostile_folder / "report.html").read_text()
    main(["knn", "--weights", "/nowhere/\x1b[2J[red]"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every attempt to reach another machine, which fails."""
    attempts = []

    def record(name: str):
        def refuse(*arguments, **_):
            attempts.append((name, arguments))
            raise OSError(f"no network: {name}")

        return refuse

    connect = socket.socket.connect

    def connect_here(self: socket.socket, address):
        if self.family != socket.AF_UNIX:  # by which processes of this machine speak
            record("connect")(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, record(name))
    return attempts


def test_nothing_calls_home(base: Path, tmp_path: Path, network: list):
    run, data = tmp_path / "run", base / "data"
    rows = {"image": [{"bytes": png(), "path": None}] * 9, "label": [0, 1, 0] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    probe = {"weights": run, "device": "cpu", "num_workers": 0}
    for command in (
        ["pretrain", *flags(data=data, out=run, **SMALL | {"num_workers": 1})],
        ["pretrain", *flags(data=f"hf:{tmp_path}/hub", out=tmp_path / "hub run", **SMALL)],
        ["export", *flags(weights=run, out=tmp_path / "timm")],
        ["export", *flags(weights=run, out=tmp_path / "hf", format="transformers")],
        ["knn", *flags(**probe, k=3)],
        ["knn", *flags(weights=tmp_path / "hf", data=data, k=3, num_workers=0)],
        ["linear-probe", *flags(data=data, out=tmp_path / "probe", epochs=1, batch_size=8, **probe)],
        ["info", *flags(weights=run)],
        ["report", *flags(run=run)],
    ):
        assert main(command) == 0, command
    assert network == []
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.com", 80))
    assert network, "the trap doesn't work"
