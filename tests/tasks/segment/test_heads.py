"""UPerNet against golden values of mmsegmentation's and against transformers', weights for weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import UperNetConfig as TheirConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

import efficient_mae as emae
from efficient_mae.backbones import VisionTransformer
from efficient_mae.backbones.swin import Swin
from efficient_mae.errors import InputError
from efficient_mae.tasks.downstream import feature_maps, timm_encoder
from efficient_mae.tasks.segment.heads import FCNHead, PlainPyramid, UPerHead, resize
from efficient_mae.tasks.segment.model import UPerNet, UPerNetConfig, feature_places

GOLDEN = Path(__file__).parents[2] / "golden" / "upernet.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def load(module: nn.Module, tensors: dict[str, Tensor], part: str) -> nn.Module:
    """mmsegmentation's names: `conv` and `bn` of a unit are its first and second module here."""
    mine = {
        name.removeprefix(f"weights.{part}.").replace(".conv.", ".0.").replace(".bn.", ".1."): value
        for name, value in tensors.items()
        if name.startswith(f"weights.{part}.")
    }
    lacking = module.load_state_dict(mine, strict=False)
    assert not lacking.unexpected_keys and all("num_batches" in name for name in lacking.missing_keys)
    return module.double().eval()


def parts(golden: dict[str, Tensor]) -> tuple[nn.Module, nn.Module, nn.Module, list[Tensor]]:
    neck, head, aux = PlainPyramid(24), UPerHead([24] * 4, 20, 5), FCNHead(24, 12, 5)
    for module, part in ((neck, "neck"), (head, "head"), (aux, "aux")):
        load(module, golden, part)
    return neck, head, aux, [golden[f"input.feature_{level}"].double() for level in range(4)]


@torch.no_grad()
def test_golden_values(golden: dict[str, Tensor]):
    neck, head, aux, maps = parts(golden)
    levels = neck(maps)
    for number, level in enumerate(levels):
        torch.testing.assert_close(level.float(), golden[f"out.level_{number}"], rtol=0, atol=2e-6)
    logits, auxiliary = head(levels), aux(levels[2])
    torch.testing.assert_close(logits.float(), golden["out.logits"], rtol=0, atol=2e-6)
    torch.testing.assert_close(auxiliary.float(), golden["out.aux_logits"], rtol=0, atol=2e-6)
    labels = golden["input.labels"].long()
    for found, name in ((logits, "ce"), (auxiliary, "aux_ce")):
        loss = F.cross_entropy(resize(found, (128, 128)), labels, ignore_index=255)
        assert loss.item() == pytest.approx(golden[f"out.{name}_mean_over_valid"].item(), abs=1e-10)


@torch.no_grad()
def test_golden_values_of_training(golden: dict[str, Tensor]):
    neck, head, _, maps = parts(golden)
    neck.train(), head.train()
    head.dropout.eval()
    torch.testing.assert_close(head(neck(maps)).float(), golden["out.logits_train_mode"], rtol=0, atol=2e-6)


@torch.no_grad()
def test_transformers_head_weights_for_weights():
    torch.manual_seed(0)
    config = TheirConfig(hidden_size=16, num_labels=7, auxiliary_in_channels=12, auxiliary_channels=10)
    dims = [8, 10, 12, 14]
    theirs, their_aux = UperNetHead(config, dims), UperNetFCNHead(config, dims)
    ours, our_aux = UPerHead(dims, 16, 7), FCNHead(12, 10, 7)
    for mine, one in ((ours, theirs), (our_aux, their_aux)):
        for parameter in one.parameters():
            parameter.normal_(0.1, 0.3)
        for name, buffer in one.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        renamed = {
            name.replace(".batch_norm.", ".1.").replace(".conv.", ".0.").replace("classifier", "conv_seg"): value
            for name, value in one.state_dict().items()
        }
        mine.load_state_dict(renamed)
    levels = [torch.randn(2, dim, side, side + 2) for dim, side in zip(dims, (28, 14, 7, 4), strict=True)]
    for mine, one, given in ((ours, theirs, levels), (our_aux, their_aux, levels[2])):
        torch.testing.assert_close(mine.eval()(given), one.eval()(levels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "places"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (2, (0, 0, 0, 1)), (1, (0, 0, 0, 0))]
)
def test_which_blocks_features_are_of(depth: int, places: tuple[int, ...]):
    with torch.device("meta"):
        encoder = VisionTransformer(32, 8, embed_dim=24, depth=depth, num_heads=3)
    assert feature_places(encoder) == places


def test_features_are_those_of_our_own_blocks():
    torch.manual_seed(0)
    encoder = VisionTransformer((32, 48), 8, embed_dim=24, depth=3, num_heads=3).eval()
    images, outputs = torch.randn(2, 3, 32, 48), []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, given, out: outputs.append(out))
    encoder(images)
    made = feature_maps(timm_encoder(encoder).eval(), images, (0, 0, 2))
    for one, place in zip(made, (0, 0, 2), strict=True):
        expected = outputs[place][:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def make(name: str) -> VisionTransformer | Swin:
    if name == "swin":
        return Swin(img_size=64, embed_dim=12, depth=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=2)
    model = emae.create_model(f"{name}_vit_tiny_patch16", img_size=64, depth=2)
    return model.backbone


@pytest.mark.parametrize("name", ["mae", "beit", "swin"])
def test_every_encoder_gives_a_pyramid(name: str):
    encoder = make(name)
    model = UPerNet(encoder, 5, UPerNetConfig(width=8, aux_width=4), drop_path=0.1)
    logits, auxiliary = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5, 16, 16) and auxiliary.shape == (2, 5, 4, 4)
    (logits.sum() + auxiliary.sum()).backward()
    untrained = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not untrained
    ours, held = encoder.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(held[name], value) for name, value in ours.items() if name in held)
    assert ours.keys() <= held.keys()


def test_what_is_too_small_is_one_line():
    with torch.device("meta"), pytest.raises(InputError, match="1 x 1 patches: UPerNet halves them"):
        UPerNet(VisionTransformer(16, 16, embed_dim=24, depth=2, num_heads=3), 5, UPerNetConfig(width=8))


@pytest.mark.parametrize("init_values", [None, 0.3])
def test_relative_positions_begin_as_the_plain_vit(init_values: float | None):
    torch.manual_seed(0)
    encoder = VisionTransformer((32, 48), 8, embed_dim=24, depth=2, num_heads=3, init_values=init_values)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    plain, relative = (
        UPerNet(encoder, 5, UPerNetConfig(width=8, aux_width=4, relative_positions=which)).eval()
        for which in (False, True)
    )
    heads = {name: value for name, value in plain.state_dict().items() if "encoder" not in name}
    relative.load_state_dict(heads, strict=False)
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(relative(images)[0], plain(images)[0], rtol=1e-4, atol=1e-4)
    relative(images)[0].square().sum().backward()
    tables = [p for name, p in relative.named_parameters() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2 and all((table == 0).all() and table.grad.abs().sum() > 0 for table in tables)


def test_relative_positions_are_for_a_plain_vit():
    with pytest.raises(InputError, match="relative_positions=true: is for a plain ViT; a swin encoder has them"):
        UPerNet(make("swin"), 5, UPerNetConfig(width=8, relative_positions=True))
