"""BEiT (Bao et al. 2021): hidden patches' visual tokens, from a mask token in their place.

B images, C channels, h x w pixels, T hidden patches of the batch, D width.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones.beit import Beit
from efficient_mae.backbones.kernels.linear import Linear
from efficient_mae.masking import blockwise_mask_from_noise
from efficient_mae.methods.base import PublishedCost
from efficient_mae.methods.mae.costs import stack_macs
from efficient_mae.methods.masked import MaskedMethod, MaskedPlan, MaskedPlanner, tokens_of
from efficient_mae.methods.tokens import DALLE, TokenConfig, TokenMethod, TokenOutput, TokenSettings, token_errors

# Table 3: size, tokenizer, name, GFLOPs.
_PAPER = (
    ("base", None, "BEiT", 18.8),
    ("base", DALLE, "BEiT and DALL-E's", 44.9),
    ("large", None, "BEiT", 63.2),
    ("large", DALLE, "BEiT and DALL-E's", 89.3),
)


@dataclass(frozen=True, kw_only=True)
class BEiTConfig(TokenConfig):
    """Everything that a BEiT is made of; what a checkpoint records."""

    method = "beit"

    def make_backbone(self) -> Beit:
        """With layer scale, drop path and one table of relative positions."""
        return Beit(**self.backbone, init_values=self.layer_scale, drop_path_rate=self.drop_path)

    def tokens(self, plan: MaskedPlan) -> dict[str, float]:
        return tokens_of(plan)

    def paper_gmacs(self, images: int = 256, seed: int = 0) -> float:
        """Every token goes through the encoder, every patch's through the head, the tokenizer's work included."""
        patches, width = self.grid_size[0] * self.grid_size[1], self.embed_dim
        numbers = self.in_chans * self.patch_size**2 + self.vocab_size
        encoder = stack_macs(self.depth, width, torch.tensor([1.0 + patches]).double())
        return (patches * numbers * width + encoder) / 1e9 + self.tokenizer_gmacs()

    @classmethod
    def published(cls) -> tuple[PublishedCost, ...]:
        """Table 3."""
        return tuple(
            PublishedCost("3", f"beit_vit_{size}_patch16", {"tokenizer": tokenizer}, name, 75 / 196, gmacs)
            for size, tokenizer, name, gmacs in _PAPER
        )

    def planner(self, unit: int | None = None) -> MaskedPlanner:
        """Makes masks of blocks: of 75 of 196 patches, or a few less."""
        sizes = {"num_masked": self.num_masked, "smallest_block": self.smallest_block}
        return MaskedPlanner(partial(blockwise_mask_from_noise, grid_size=self.grid_size, **sizes))


class BEiT(TokenMethod, MaskedMethod):
    """Whole images go through the encoder; a linear head says which token of the vocabulary each hidden patch is.

    Source: Secs. 2.3 and 2.4 of BEiT.
    """

    Settings, Config = TokenSettings, BEiTConfig
    config: BEiTConfig
    backbone: Beit

    def __init__(self, config: BEiTConfig):
        super().__init__(config)
        self.lm_head = Linear(config.embed_dim, config.vocab_size)
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def learn(
        self, images: Float[Tensor, "B C h w"], latent: Float[Tensor, "B H W D"], plan: MaskedPlan
    ) -> TokenOutput:
        """Cross-entropy of the hidden patches' tokens.

        Raises:
            InputError: the model has no tokenizer, or its file is gone or another.
        """
        logits = self.lm_head(latent.flatten(0, 2).index_select(0, plan.ids_hidden))
        target = self.tokens(images, plan)
        errors = token_errors(logits, target)
        return TokenOutput((plan.weights * errors).sum(), errors, plan, logits, target)
