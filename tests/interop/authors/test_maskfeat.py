"""Files in the layout of MaskFeat's published code, SlowFast, with the golden values' weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import efficient_mae as emae
from efficient_mae.backbones.sizes import Size
from efficient_mae.data import normalize
from efficient_mae.interop import ImageStatistics, load_statistics
from efficient_mae.interop.state_dicts import SIZES
from efficient_mae.methods.maskfeat import MaskFeat
from tests.interop.conftest import as_wide

GOLDEN = Path(__file__).parents[2] / "golden"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The golden file's names, which are mmpretrain's, and SlowFast's.
NAMES = {
    "backbone.layers": "blocks", "backbone.patch_embed.projection": "patch_embed.proj",
    "backbone.ln1": "pred_head.transforms.0.0", "backbone.": "", "neck.fc": "pred_head.projections.0",
    ".ln1": ".norm1", ".ln2": ".norm2", ".ffn.layers.0.0": ".mlp.fc1", ".ffn.layers.1": ".mlp.fc2",
}  # fmt: skip


def renamed(name: str) -> str:
    for theirs, published in NAMES.items():
        name = name.replace(theirs, published)
    return name


@pytest.fixture
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "maskfeat_vit.safetensors")


@pytest.fixture
def weights(golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Heads are told by the width, of which the golden values have another."""
    monkeypatch.setitem(SIZES, "golden", Size(48, 2, 3))
    named = {renamed(name): x for name, x in golden.items() if name.startswith(("backbone.", "neck."))}
    return as_wide(named, 48) | {"hogs.0.weight_x": torch.ones(3, 1, 3, 3), "hogs.0.weight_y": torch.ones(3, 1, 3, 3)}


def write(file: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"epoch": 299, "model_state": weights, "cfg": "TASK: ssl"}, file)
    return file


def test_a_pretraining_file(weights: dict[str, Tensor], golden: dict[str, Tensor], tmp_path: Path):
    file = write(tmp_path / "checkpoint_epoch_00300.pyth", weights)
    model = emae.load(file)
    assert type(model) is MaskFeat and not model.training
    assert (model.config.img_size, model.config.patch_size, model.config.cell_size) == ((224, 224), 16, 8)
    images = normalize(load_file(GOLDEN / "maskfeat_hog_224.safetensors")["images_uint8"], *IMAGENET)
    with torch.no_grad():
        out = model(images, golden["mask"].view(2, 14, 14))
    torch.testing.assert_close(out.prediction, golden["pred_masked"], rtol=0, atol=1e-5)
    assert load_statistics(file) == ImageStatistics(*IMAGENET)


def test_files_of_something_else(weights: dict[str, Tensor], tmp_path: Path):
    def refused(weights: dict[str, Tensor], what: str):
        with pytest.raises(ValueError, match=what):
            emae.load(write(tmp_path / "file.pyth", weights))

    pixels = {"pred_head.projections.0.weight": torch.ones(768, 48), "pred_head.projections.0.bias": torch.ones(768)}
    refused(weights | pixels, "768 numbers of a patch, which are no histograms")
    refused({name: x for name, x in weights.items() if name != "pos_embed"}, "pos_embed.* isn't as in MaskFeat")
    refused(weights | {"blocks.0.attn.rel_pos_h": torch.ones(27, 16)}, "with blocks.0.attn.rel_pos_h")
    with pytest.raises(ValueError, match="holds a model of maskfeat; efficient_mae.load takes it"):
        emae.from_mae_checkpoint(write(tmp_path / "file.pth", weights))
