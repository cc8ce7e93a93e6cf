import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import efficient_mae as emae
from efficient_mae.backbones import VisionTransformer
from efficient_mae.interop import ImageStatistics, save_encoder
from efficient_mae.interop.headers import Head
from efficient_mae.tasks.classify.linear_probe import LinearProbe, LinearProbeConfig, linear_probe
from tests.forks import ForkServer

from ..conftest import flags
from ..labelled import QUICK, SMALL_ENCODER, stop_after_checkpoints, write_labelled


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    model = emae.create_model("mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1, decoder_depth=1)
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(file, model, ImageStatistics((0.5,), (0.5,)))
    return file


def config(data: Path, out: Path, encoder: Path, **settings) -> LinearProbeConfig:
    given = {**QUICK, "weights": str(encoder), "epochs": 8, "eval_every": 4, "base_lr": 200.0}
    return LinearProbeConfig(data=str(data), out=str(out), **(given | settings))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_head_learns_and_the_encoder_stays(data: Path, tmp_path: Path, encoder: Path, pool: str):
    result = linear_probe(config(data, tmp_path / "run", encoder, pool=pool))
    assert result.top1 > 0.8
    trained = load_file(next((tmp_path / "run" / "checkpoints").iterdir()) / "model.safetensors")
    before = load_file(encoder)
    assert all(torch.equal(trained[f"encoder.{name}"], tensor) for name, tensor in before.items())
    moved = {name for name in trained if not name.startswith("encoder.")}
    assert moved == {"head.weight", "head.bias", "norm.running_mean", "norm.running_var"}
    state = load_file(next((tmp_path / "run" / "checkpoints").iterdir()) / "optimizer.safetensors")
    assert set(state) == {"head.weight/momentum_buffer", "head.bias/momentum_buffer"}


def test_interrupted_and_resumed_is_bit_identical(
    data: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
):
    alone, cut = (config(data, tmp_path / name, encoder, checkpoint_every=5, epochs=2) for name in ("alone", "cut"))
    linear_probe(alone)
    stop_after_checkpoints(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        linear_probe(cut)
    monkeypatch.undo()
    linear_probe(cut)
    for file in Path(alone.out).rglob("*.safetensors"):
        assert file.read_bytes() == (Path(cut.out) / file.relative_to(alone.out)).read_bytes(), file


def test_two_processes_do_what_one_does(server: ForkServer, data: Path, tmp_path: Path, encoder: Path):
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        given = {"weights": encoder, "data": data, "epochs": 2, "batch_size": 24, "num_workers": 0, "base_lr": 200.0}
        ended = server.start(["linear-probe", *flags(out=out, precision="fp32", **given)], processes).wait()
        assert all(one.status == 0 for one in ended), ended
        weights = load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")
        found[processes] = weights, json.loads((out / "results.json").read_text())
    for name, tensor in found[1][0].items():
        torch.testing.assert_close(found[2][0][name], tensor, rtol=2e-4, atol=2e-5, msg=name)
    assert found[1][1]["test_images"] == found[2][1]["test_images"] == 36
    assert found[1][1]["confusion"] == found[2][1]["confusion"]


def test_features_are_normalised_without_learned_factors():
    torch.manual_seed(0)
    probe = LinearProbe(VisionTransformer(16, 8, 1, 192, depth=1, num_heads=3), 4, "token").train()
    assert not probe.encoder.training and probe.norm.training
    images = torch.randn(32, 1, 16, 16)
    features = probe.encoder.forward_features(images)[:, 0]
    norm = nn.BatchNorm1d(192, affine=False, eps=1e-6)
    torch.testing.assert_close(probe(images), probe.head(norm(features)))
    torch.testing.assert_close(probe.norm.running_var, norm.running_var)
    torch.testing.assert_close(probe.eval()(images), probe.head(norm.eval()(features)))
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("settings", "what"), [({"pool": "max"}, "pool='max'"), ({"img_size": 18}, "18")])
def test_what_cannot_work(data: Path, tmp_path: Path, encoder: Path, settings: dict, what: str):
    with pytest.raises(ValueError, match=what):
        linear_probe(config(data, tmp_path / "run", encoder, **settings))
    assert not (tmp_path / "run").exists()


def test_an_untrained_encoder_is_probed_too(data: Path, tmp_path: Path):
    scratch = LinearProbeConfig(data=str(data), out=str(tmp_path / "run"), **{**SMALL_ENCODER, **QUICK, "epochs": 1})
    assert linear_probe(scratch).weights is None


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_what_is_written_is_the_probe_with_its_norm_in_the_head(pool: str):
    torch.manual_seed(0)
    probe = LinearProbe(VisionTransformer(16, 8, 1, 192, depth=1, num_heads=3), 4, pool).train()
    for _ in range(20):
        probe(torch.randn(32, 1, 16, 16) + 1)
    images = torch.randn(5, 1, 16, 16)
    vit = probe.eval().folded(Head(("a", "b", "c", "d"), pool, fc_norm=False)).eval()
    with torch.no_grad():
        torch.testing.assert_close(vit(images), probe(images), rtol=1e-4, atol=1e-5)
