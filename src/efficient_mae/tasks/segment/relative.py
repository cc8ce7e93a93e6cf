"""A plain ViT that also learns a bias by relative position in each block, and scales its layers, as published for MAE
on ADE20K: timm's Beit, which at first computes what the ViT does.
"""

import re
from typing import Any

import torch
from timm.models import beit as timm_beit
from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.errors import InputError

# Where a ViT's names differ from a Beit's.
_RENAMED = {r"\.ls1\.gamma$": ".gamma_1", r"\.ls2\.gamma$": ".gamma_2"}


def with_relative_positions(encoder: Backbone, drop_path: float = 0.0) -> Any:
    """timm's Beit with the encoder's weights and positions; biases of 0, and layer scale of 1 where it has none.

    A Beit has no bias of the keys: it adds the same number to all logits of a query, which softmax takes away.

    Raises:
        InputError: no plain ViT.
    """
    if encoder.family != "vit":
        raise InputError(f"relative_positions=true: is for a plain ViT; a {encoder.family} encoder has them already")
    made = {"init_values": 1.0, "use_abs_pos_emb": True, "use_rel_pos_bias": True, "num_classes": 0}
    arguments = encoder.arguments | made | {"drop_path_rate": drop_path, "global_pool": "token"}
    model = timm_beit.Beit(**arguments).to(next(encoder.parameters()))
    weights = model.state_dict()
    for name, value in encoder.state_dict().items():
        for pattern, other in _RENAMED.items():
            name = re.sub(pattern, other, name)
        if name.endswith("attn.qkv.bias"):
            weights |= _biases(name.removesuffix("qkv.bias"), value)
        else:
            weights[name] = value
    model.load_state_dict(weights)
    model.norm.requires_grad_(False)
    return model.train(encoder.training)


def _biases(prefix: str, together: Tensor) -> dict[str, Tensor]:
    queries, _, values = torch.chunk(together, 3)
    return {f"{prefix}q_bias": queries, f"{prefix}v_bias": values}
