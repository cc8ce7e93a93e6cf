"""What learning with labels has in common."""

import pytest
from torch import nn

import efficient_mae as emae
from efficient_mae.tasks.downstream import layer_decay_groups, timm_encoder


def test_heads_are_a_layer_above_the_last_block():
    """BEiT's and MAE's rule: of N blocks the i-th, counted from 1, has decay ** (N + 1 - i), what embeds patches has
    decay ** (N + 1), and what is not of the encoder the whole rate."""
    model = emae.create_model("mae_vit_tiny_patch8", img_size=32, depth=3, decoder_depth=1)
    encoder, head = timm_encoder(model.backbone), nn.Conv2d(192, 5, 1)
    scales = {
        parameter: (group["lr_scale"], group["weight_decay"])
        for group in layer_decay_groups(encoder, 0.05, 0.7, [head])
        for parameter in group["params"]
    }
    trained = [one for part in (encoder, head) for one in part.parameters() if one.requires_grad]
    assert {*scales} == {*trained}
    assert scales[head.weight] == (1.0, 0.05) and scales[head.bias] == (1.0, 0.0)
    for place, block in enumerate(encoder.blocks):
        assert scales[block.attn.qkv.weight] == (pytest.approx(0.7 ** (3 - place)), 0.05)
        assert scales[block.norm1.weight] == (pytest.approx(0.7 ** (3 - place)), 0.0)
    assert scales[encoder.patch_embed.proj.weight] == (pytest.approx(0.7**4), 0.05)
    assert scales[encoder.pos_embed] == (pytest.approx(0.7**4), 0.0)
