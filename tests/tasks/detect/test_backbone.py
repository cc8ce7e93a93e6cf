"""ViTDet's backbone against the golden values, detectron2's, and against transformers' VitDet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_sam import get_rel_pos, window_partition
from torch import Tensor
from transformers import VitDetBackbone, VitDetConfig

from efficient_mae.tasks.detect.backbone import SimplePyramid, WindowedViT, attend, resized_positions, run_block

GRID = (8, 6)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    tensors = load_file(Path(__file__).parents[2] / "golden" / "vitdet.safetensors")
    return {name: one.double() if one.is_floating_point() else one for name, one in tensors.items()}


@pytest.fixture(scope="module")
def vit(golden: dict[str, Tensor]) -> tuple[TimmViT, WindowedViT]:
    """The golden backbone: of images of 128 pixels, positions of 64, block 0 in windows of 3."""
    encoder = TimmViT(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=0)
    for block in encoder.blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    windows = WindowedViT(encoder, (8, 8), window_size=3, global_blocks=1)
    encoder, windows = encoder.double().eval(), windows.double()
    net = {name.removeprefix("weights.net."): one for name, one in golden.items() if name.startswith("weights.net.")}
    tables = {name.replace("attn.", ""): one for name, one in net.items() if "rel_pos" in name}
    windows.load_state_dict(tables)
    rest = {name: one for name, one in net.items() if "rel_pos" not in name}
    missing, unexpected = encoder.load_state_dict(rest, strict=False)
    assert set(missing) == {"cls_token", "norm.weight", "norm.bias"} and not unexpected
    return encoder, windows


def test_it_is_detectron2s(golden: dict[str, Tensor], vit: tuple[TimmViT, WindowedViT]):
    encoder, windows = vit
    positions = resized_positions(encoder.pos_embed, (4, 4), GRID)
    torch.testing.assert_close(positions, golden["out.abs_pos"], atol=1e-6, rtol=1e-6)
    images = golden["input.image"]
    x = encoder.patch_embed.proj(images).permute(0, 2, 3, 1) + positions
    torch.testing.assert_close(x, golden["out.block0_in"], atol=1e-6, rtol=1e-6)
    x = golden["out.block0_in"]
    in_windows, padded = window_partition(encoder.blocks[0].norm1(x), 3)
    assert padded == (9, 6) and windows.windows == [3, 0]
    torch.testing.assert_close(in_windows, golden["out.block0_window_attn_in"])
    attended = attend(encoder.blocks[0].attn, windows.blocks[0], in_windows)
    torch.testing.assert_close(attended, golden["out.block0_window_attn_out"])
    x = run_block(encoder.blocks[0], windows.blocks[0], x, 3)
    torch.testing.assert_close(x, golden["out.block0_out"])
    x = run_block(encoder.blocks[1], windows.blocks[1], x, 0)
    torch.testing.assert_close(x, golden["out.block1_out"])
    whole = windows(encoder, images).permute(0, 2, 3, 1)
    torch.testing.assert_close(whole, golden["out.block1_out"], atol=1e-6, rtol=1e-6)


def test_recomputed_in_the_backward_pass_it_is_the_same(vit: tuple[TimmViT, WindowedViT]):
    encoder, windows = vit
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    gradients = []
    for windows.grad_checkpointing in (False, True):
        loss = windows(encoder, images).square().sum()
        gradients.append(torch.autograd.grad(loss, windows.blocks[0].rel_pos_h)[0])
    windows.grad_checkpointing = False
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (6, 6), (10, 10), (4, 8), (8, 4)])
def test_relative_positions_of_another_size(golden: dict[str, Tensor], queries: int, keys: int):
    found = get_rel_pos(queries, keys, golden["relpos.table"])
    torch.testing.assert_close(found, golden[f"relpos.q{queries}_k{keys}"], atol=1e-5, rtol=1e-5)


def test_windows(golden: dict[str, Tensor]):
    numbers = torch.arange(1, 57).view(1, 8, 7, 1)
    assert torch.equal(window_partition(numbers, 3)[0][..., 0], golden["window.index_8x7"].long())


def test_the_pyramid_is_detectron2s(golden: dict[str, Tensor]):
    pyramid = SimplePyramid(32, 16).double()
    # Where a convolution comes with its norm, detectron2 has one name for both.
    convolutions = {2: (4, 5), 3: (1, 2), 4: (0, 1), 5: (1, 2)}
    state = {}
    for name, one in golden.items():
        if name.startswith("weights.simfp_"):
            level, place, *rest = name.removeprefix("weights.simfp_").split(".")
            inner = ""
            if int(place) in convolutions[int(level)]:
                inner, rest = ("1.", rest[1:]) if rest[0] == "norm" else ("0.", rest)
            state[f"levels.{int(level) - 2}.{place}.{inner}{'.'.join(rest)}"] = one
    pyramid.load_state_dict(state)
    maps = pyramid(golden["out.block1_out"].permute(0, 3, 1, 2))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    for level, one in enumerate(maps.values(), 2):
        torch.testing.assert_close(one, golden[f"out.p{level}"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("side", [64, 80])
def test_it_is_transformers(side: int):
    """Weights for weights, also where the images are larger than those that its tables are for."""
    torch.manual_seed(0)
    config = VitDetConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=2, image_size=64, patch_size=8,
        pretrain_image_size=32, window_size=3, window_block_indices=[0, 2], use_relative_position_embeddings=True,
    )  # fmt: skip
    theirs: Any = VitDetBackbone(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    encoder = TimmViT(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4, mlp_ratio=2, num_classes=0)
    windows = WindowedViT(encoder, (8, 8), window_size=3, global_blocks=2)
    names = {"embeddings.projection": "patch_embed.proj", "embeddings.position_embeddings": "pos_embed"}
    state = {}
    for name, one in theirs.state_dict().items():
        for old, new in {**names, "encoder.layer": "blocks", "attention": "attn"}.items():
            name = name.replace(old, new)
        state[name] = one
    windows.load_state_dict({name.replace("attn.", ""): one for name, one in state.items() if "rel_pos" in name})
    unexpected = encoder.load_state_dict(state, strict=False).unexpected_keys
    assert all("rel_pos" in name for name in unexpected) and len(unexpected) == 8
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(images).feature_maps[-1]
        torch.testing.assert_close(windows(encoder.eval(), images), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("depth", "expected"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (32, [7, 15, 23, 31])])
def test_which_blocks_attend_everywhere(depth: int, expected: list[int]):
    """As published for ViT-B, L and H."""
    encoder = TimmViT(img_size=16, patch_size=16, embed_dim=8, depth=depth, num_heads=1, num_classes=0)
    windows = WindowedViT(encoder, (2, 2))
    assert [block for block, window in enumerate(windows.windows) if not window] == expected
