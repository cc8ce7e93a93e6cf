"""MaskFeat: the published implementation's numbers, and all that a method does in this house."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

import efficient_mae as emae
from efficient_mae.backbones.vit import Block
from efficient_mae.bench.flops import count_gmacs
from efficient_mae.cli import main
from efficient_mae.data import TrainBatch, normalize
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import ALONE, Processes, join_processes
from efficient_mae.engine.machine.parallel import parallelize, whole_tensor
from efficient_mae.engine.optim import build_adamw
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics, load_config
from efficient_mae.methods.maskfeat import MaskFeat, MaskFeatConfig
from efficient_mae.tasks.pretrain import MethodObjective
from tests.processes import spawn
from tests.tasks.conftest import assert_same_result, flags, result_of, rows
from tests.tasks.labelled import stop_after_checkpoints, write_labelled

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Names in the published implementation's file, and here.
NAMES = {
    "backbone.layers": "blocks", "backbone.patch_embed.projection": "patch_embed.proj", "backbone.ln1": "norm",
    "backbone.": "", "neck.fc": "hog_pred", ".ln1": ".norm1", ".ln2": ".norm2", ".ffn.layers.0.0": ".mlp.fc1",
    ".ffn.layers.1": ".mlp.fc2",
}  # fmt: skip


def renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "maskfeat_vit.safetensors")


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    return load_file(GOLDEN / "maskfeat_hog_224.safetensors")


@pytest.fixture(scope="module")
def model(golden: dict[str, Tensor]) -> MaskFeat:
    config = MaskFeatConfig(
        img_size=(224, 224), in_chans=3, patch_size=16, embed_dim=48, depth=2, num_heads=3,
        mask_ratio=0.4, smallest_block=None, cell_size=8,
    )  # fmt: skip
    model = MaskFeat(config)
    model.backbone.blocks = nn.ModuleList(Block(48, 3, mlp_ratio=2) for _ in range(2))  # as narrow as theirs
    weights = {name: value for name, value in golden.items() if name.startswith(("backbone.", "neck."))}
    model.load_state_dict({renamed(name): value for name, value in weights.items()})
    return model


def test_features_predictions_and_loss(model: MaskFeat, golden: dict[str, Tensor], images: dict[str, Tensor]):
    mask = golden["mask"].view(2, 14, 14)
    pixels = normalize(images["images_uint8"], *IMAGENET)
    with torch.no_grad():
        latent = model.backbone.forward_masked(pixels, mask, model.mask_token)
        out = model(pixels, mask)
    torch.testing.assert_close(latent.flatten(1, 2), golden["latent"][:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.prediction, golden["pred_masked"], rtol=0, atol=1e-5)
    # Their loss, of their targets; and ours, of those of whole numbers.
    theirs = images["target_patches"][golden["mask"]]
    assert (out.prediction - theirs).square().mean().item() == pytest.approx(golden["loss_nogauss"].item(), rel=1e-6)
    exact = images["target_patches_0_255"][golden["mask"]]
    torch.testing.assert_close(out.target, exact, rtol=0, atol=1e-6)
    expected = (golden["pred_masked"] - exact).square().mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_is_published_is_the_default():
    config = emae.create_model("maskfeat_vit_tiny_patch16", depth=1).config
    masks = config.planner()(torch.rand(200, 196, generator=torch.Generator().manual_seed(0))).mask
    hidden = masks.sum(dim=(1, 2))
    assert hidden.max() == 78 and 77 < hidden.float().mean() < 78
    assert config.planner().make_mask.keywords["smallest_block"] == 15


def test_every_weight_is_learned_positions_too():
    model = emae.create_model("maskfeat_vit_tiny_patch4", img_size=16, depth=1, cell_size=4)
    out = model(torch.randn(4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert "backbone.pos_embed" in gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_what_is_visible_is_kept_and_histograms_are_drawn():
    model = emae.create_model("maskfeat_vit_tiny_patch8", img_size=32, depth=1)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        out = model(images, generator=torch.Generator().manual_seed(0))
        painted = model.paint(images, out)
    hidden = out.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert torch.equal(painted[~hidden], images[~hidden])
    for before, after, where in zip(images, painted, hidden):
        assert after[where].min() == before.min() and after[where].max() > before.min()
        assert after[where].max() <= before.max()


SMALL = {"img_size": 16, "in_chans": 1, "depth": 1, "cell_size": 2}
STATISTICS = ImageStatistics((0.5,), (0.5,))


def batch_of(first: int, last: int) -> TrainBatch:
    """Images and masks first ... last of a fixed global batch of 8, of which some hide fewer patches."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=generator)
    planner = emae.create_model("maskfeat_vit_tiny_patch4", **SMALL).config.planner()
    mask = planner(torch.rand(8, 16, generator=generator)).mask
    mask[:3, 1:] = False
    plan = planner.plan(mask[first:last])
    return TrainBatch(images[first:last], torch.arange(first, last), None, [], Flat.of(plan))


class _Double(nn.Module):
    """Runs the model in float64, so that only a wrong average can make a difference."""

    def __init__(self, model: MaskFeat):
        super().__init__()
        self.model = model

    def forward(self, images, masks):
        return self.model(images.double(), masks)


def gradients_of_a_step(processes: Processes, accum_iter: int, parallel: str = "ddp") -> tuple[float, list[Tensor]]:
    torch.manual_seed(0)
    model = emae.create_model("maskfeat_vit_tiny_patch4", **SMALL).double()
    trained = parallelize(_Double(model), processes, parallel=parallel)
    seen: list[Tensor] = []
    optimizer = build_adamw(model, 0.05)
    optimizer.register_step_pre_hook(lambda *_: seen.extend(whole_tensor(p.grad).clone() for p in model.parameters()))
    step = Step(trained, optimizer, MethodObjective(STATISTICS), processes, lambda _: 1e-3)
    size = 8 // (accum_iter * processes.world_size)
    parts = [(part * processes.world_size + processes.rank) * size for part in range(accum_iter)]
    loss, _ = step(0, [batch_of(first, first + size) for first in parts])
    return processes.sum(loss.clone()).item(), seen


CASES = [(1, "ddp"), (2, "ddp"), (2, "fsdp")]


def in_process(rank: int, results) -> None:
    with join_processes("cpu") as processes:
        for case in CASES:
            loss, gradients = gradients_of_a_step(processes, *case)
            results[case, rank] = loss, [gradient.numpy() for gradient in gradients]


def assert_alike(found: tuple[float, list], expected: tuple[float, list[Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert (torch.as_tensor(ours) - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-12


def test_parts_and_processes_give_the_gradients_of_the_global_batch():
    weights = [batch_of(first, first + 2).masks.value.weights.sum().item() for first in (0, 2, 4, 6)]
    assert max(weights) > 1.2 * min(weights), "a mean of means would pass"
    whole = gradients_of_a_step(ALONE, 1)
    for accum_iter in (2, 8):
        assert_alike(gradients_of_a_step(ALONE, accum_iter), whole)
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, in_process, shared)
        assert len(shared) == 2 * len(CASES)
        for found in shared.values():
            assert_alike(found, whole)


@pytest.mark.parametrize(("size", "gmacs"), [("base", 17.6), ("large", 61.6)])
def test_its_cost_is_the_papers(size: str, gmacs: float):
    with torch.device("meta"):
        config = emae.create_model(f"maskfeat_vit_{size}_patch16").config
    assert count_gmacs(config, 8) == pytest.approx(gmacs, rel=0.01)
    (published,) = (cost for cost in MaskFeatConfig.published() if cost.model == f"maskfeat_vit_{size}_patch16")
    assert (published.table, published.mask_ratio, published.gmacs) == ("3", 0.4, gmacs)


MODEL = {"model": "maskfeat_vit_tiny_patch4", **SMALL}
RUN = {**MODEL, "precision": "fp32", "device": "cpu", "num_workers": 0, "batch_size": 16, "epochs": 6,
       "warmup_epochs": 1, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 20, "clip_grad": 0.02,
       "base_lr": 1e-2}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("maskfeat") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maskfeat") / "run"
    assert main(["pretrain", *flags(data=data, out=out, **RUN)]) == 0
    return out


def test_it_learns_and_is_drawn_and_reported(run: Path):
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    config = load_config(run)
    assert type(config) is MaskFeatConfig and config.cell_size == 2 and config.mask_ratio == 0.4
    assert [panel.stat().st_size > 10_000 for panel in run.rglob("panel-*.png")] == [True]
    page = (run / "report.html").read_text()
    assert "Loss" in page and "Multiply-accumulates" in page


def test_killed_it_resumes_to_the_same_bits(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["pretrain", *flags(data=data, out=tmp_path / "run", **RUN)]
    with monkeypatch.context() as patch:
        stop_after_checkpoints(patch, 3)
        assert main(command) == 1
    assert main(command) == 0
    assert_same_result(tmp_path / "run", run)
    assert rows(tmp_path / "run") == rows(run)


def test_it_is_judged_and_tuned(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    quick = {"data": data, "device": "cpu", "num_workers": 0}
    judged = result_of(capsys, "knn", *flags(weights=run, k=5, **quick))
    assert judged["accuracy"]["trained"] > 0.5
    tuned = {**quick, "precision": "fp32", "epochs": 1, "batch_size": 16, "out": tmp_path / "tuned"}
    assert main(["finetune", *flags(weights=run, **tuned)]) == 0
    found = load_file(next((tmp_path / "tuned" / "checkpoints").glob("step-*")) / "model.safetensors")
    assert any(name.endswith("pos_embed") for name in found)


def test_it_is_exported_to_timm(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    timm = pytest.importorskip("timm")
    result_of(capsys, "export", *flags(weights=run, out=tmp_path / "timm", format="timm"))
    vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    whole, images = emae.load(run), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(images), whole.backbone.forward_features(images))
    assert load_file(run / "encoder.safetensors").keys() == vit.state_dict().keys()


def test_an_image_is_reconstructed(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = next((data / "val" / "blob").iterdir())
    made = result_of(capsys, "reconstruct", *flags(weights=run, image=image, out=tmp_path / "a.png", device="cpu"))
    assert made["loss"] > 0 and (tmp_path / "a.png").stat().st_size > 10_000


def test_it_is_timed_and_counted(capsys: pytest.CaptureFixture[str]):
    small = {**MODEL, "device": "cpu", "precision": "fp32", "rounds": 1, "batch_size": 4, "memory": False}
    timed = result_of(capsys, "bench", "step", *flags(**small))
    assert [row["name"] for row in timed["methods"]] == ["maskfeat"] and timed["p2dist_share"] is None
    assert timed["methods"][0]["images_per_second"] > 0 and timed["masks_share"] > 0
    cost = result_of(capsys, "info", *flags(**MODEL))["cost"]
    assert cost["masked_patches"] == 6 and cost["ratio"] == 1
    assert cost["encoder_tokens"] == 17 and 5 < cost["predicted_patches"] <= 6


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"mask_ratio": 0.02}, "mask_ratio=0.02 hides none of 16 patches: take a larger one"),
        ({"smallest_block": 9}, "smallest_block=9: a mask of 6 among 4 x 4 patches has no room for such blocks; "),
        ({"img_size": [4, 16]}, "a grid of 1 x 4 patches has no room for blocks: take smaller patches"),
        ({"cell_size": 3}, "cell_size=3: does not divide the patches' 4 pixels; take one of 1, 2, 4"),
    ],
)
def test_what_does_not_fit_is_one_line(
    settings: dict, what: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["pretrain", *flags(data=data, out=tmp_path / "run", **RUN | settings)]) == 2
    said = capsys.readouterr().err
    assert what in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
