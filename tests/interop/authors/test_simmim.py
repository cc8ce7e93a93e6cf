"""SimMIM's own checkpoints, of the layout that the authors' code writes."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.interop import ImageStatistics, load_statistics
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "simmim_swin.safetensors")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Under the authors' names, with the buffers that their files hold."""
    names = {name.removeprefix("weights."): value for name, value in GOLDEN.items() if name.startswith("weights.")}
    for stage in range(3):
        names[f"encoder.layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(36, 36, dtype=torch.long)
        names[f"encoder.layers.{stage}.blocks.1.attn_mask"] = torch.zeros(4, 36, 36)
    return names


def write(file: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": weights, "epoch": 799, "max_accuracy": 0.0}, file)
    return file


def test_a_swin_is_read_from_its_weights(weights: dict[str, torch.Tensor], tmp_path: Path):
    file = write(tmp_path / "ckpt.pth", weights)
    model = emae.load(file)
    assert type(model) is SimMIM and not model.training
    assert model.config.img_size == (96, 96) and model.config.depth == (2, 2, 2)
    assert (model.config.num_heads, model.config.window_size, model.config.mlp_ratio) == ((2, 3, 4), 6, 2.0)
    out = model(GOLDEN["input.image"].float(), GOLDEN["input.mask"].bool())
    torch.testing.assert_close(out.loss.double(), GOLDEN["out.loss"], rtol=1e-6, atol=0)
    assert load_statistics(file) == ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_vit_is_read_from_its_weights(tmp_path: Path):
    torch.manual_seed(0)
    settings = {"img_size": (64, 64), "in_chans": 1, "patch_size": 16, "embed_dim": 12, "depth": 2, "num_heads": 3}
    model = SimMIM(SimMIMConfig(family="beit", window_size=None, **settings))
    names = {name if name.startswith("decoder.") else f"encoder.{name}": x for name, x in model.state_dict().items()}
    names["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    again = emae.load(write(tmp_path / "vit.pth", names))
    assert type(again) is SimMIM and again.config == model.config
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))


def test_what_it_is_not_is_one_line(weights: dict[str, torch.Tensor], tmp_path: Path):
    less = {name: value for name, value in weights.items() if "patch_embed.proj" not in name}
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.pth'}: weights of another architecture")):
        emae.load(write(tmp_path / "a.pth", less))
    other = weights | {"encoder.norm.weight": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"b.pth: .*another architecture"):
        emae.load(write(tmp_path / "b.pth", other))
    with pytest.raises(ValueError, match="holds a model of simmim; efficient_mae.load takes it"):
        emae.from_mae_checkpoint(write(tmp_path / "c.pth", weights))
