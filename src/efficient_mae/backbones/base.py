"""What an encoder is to methods, files and tasks.

B images, C channels, h x w pixels, H x W patches, rows x columns places of the last features, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from efficient_mae.errors import InputError
from efficient_mae.ranges import PositiveInt, check_range


class Backbone(nn.Module, ABC):
    """An encoder of images, under timm's parameter names.

    Attributes:
        family: the word that stands for it in models' names and in files.
        ARGUMENTS, OPTIONAL: names of what it is built by, always, and where it isn't None.
        timm_class: timm's, which takes the same state dict.
        pools: what an image's feature can be: `avg`, the mean over all places, and `token`, the class token's. The
            last is what a linear probe takes unless it is told.
        img_size: (height, width) in pixels.
        in_chans: C.
        patch_size: in pixels.
        grid_size: (H, W), the patches that can be hidden.
        strides: pixels between two places of the features of each stage; of a plain ViT there is one.
        dims: their widths; the first is that of the embedded patches, the last D.
    """

    family: ClassVar[str]
    ARGUMENTS: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    timm_class: ClassVar[Callable[..., nn.Module]]
    pools: ClassVar[tuple[str, ...]] = ("avg", "token")
    img_size: tuple[int, int]
    in_chans: int
    patch_size: int
    grid_size: tuple[int, int]
    strides: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """What another like it is built by."""
        optional = [name for name in self.OPTIONAL if getattr(self, name) is not None]
        return {name: getattr(self, name) for name in (*self.ARGUMENTS, *optional)}

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """What timm's is built by: the same names, and what is always so here."""
        return self.arguments

    @property
    def last_grid(self) -> tuple[int, int]:
        """(rows, columns) of the last features."""
        step = self.strides[-1] // self.patch_size
        return -(-self.grid_size[0] // step), -(-self.grid_size[1] // step)

    @property
    @abstractmethod
    def timm_name(self) -> str:
        """Of timm's model that is nearest; with :attr:`timm_arguments` any of its family would do."""

    @abstractmethod
    def forward_features(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B *places D"]:
        """Normalised features, in the shape in which timm gives them.

        Raises:
            InputError: images of a shape that this encoder does not take.
        """

    @abstractmethod
    def forward_masked(
        self, images: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B H W"], mask_token: Float[Tensor, "1 1 dim"]
    ) -> Float[Tensor, "B rows columns D"]:
        """Normalised features of images of which a mask token stands in place of each masked patch.

        Args:
            images: normalised.
            mask: True = masked.
            mask_token: of the width of the embedded patches.

        Raises:
            InputError: images of a shape that this encoder does not take.
        """

    def pooled(self, images: Float[Tensor, "B C h w"], pool: str = "avg") -> Float[Tensor, "B D"]:
        """One feature an image.

        Raises:
            InputError: it has no such, or images of a shape that this encoder does not take.
        """
        self.check_pool(pool)
        if pool == "token":
            return self.forward_features(images)[:, 0]
        return self.feature_map(images).flatten(1, 2).mean(dim=1)

    def feature_map(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B rows columns D"]:
        """Normalised features of the last places, a class token's left out.

        Raises:
            InputError: images of a shape that this encoder does not take.
        """
        features = self.forward_features(images)
        return features if features.ndim == 4 else features[:, 1:].unflatten(1, self.grid_size)

    def classifier_arguments(self, num_classes: int, pool: str, fc_norm: bool) -> dict[str, Any]:
        """What :attr:`timm_class` takes beside :attr:`timm_arguments` to be a classifier.

        Args:
            pool: of :attr:`pools`.
            fc_norm: whether the last norm follows the pool, where that can be chosen.

        Raises:
            InputError: it has no such head.
        """
        return {"num_classes": num_classes, "global_pool": pool}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beside those of one dimension."""
        return set()

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""

    def resized(self, **changed: Any) -> "Backbone":
        """Another like it, of random weights, for images or patches of another size or other channels.

        Raises:
            InputError: what changed does not fit the rest.
        """
        return type(self)(**self.arguments | changed)

    @abstractmethod
    def fit_positions(self, weights: dict[str, Tensor], grid_size: tuple[int, int]) -> None:
        """Interpolate what in the weights of another like it depends on the grid, in place, for this one's.

        Args:
            weights: a state dict.
            grid_size: (H, W) that they are for.
        """

    def check_pool(self, pool: str) -> None:
        """Raise InputError for a feature that it does not have."""
        if pool not in self.pools:
            raise InputError(f"pool={pool!r}: of a {self.family} encoder it must be {' or '.join(self.pools)}")

    def check_images(self, images: Tensor) -> None:
        """Raise InputError unless the images have this model's size and channels."""
        expected = (self.in_chans, *self.img_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            given = " x ".join(map(str, images.shape))
            raise InputError(f"images are {given}; this model takes B x {' x '.join(map(str, expected))}")


class SparseBackbone(Backbone):
    """One that needs no more than the visible patches."""

    @abstractmethod
    def forward_features(
        self, images: Float[Tensor, "B C h w"], ids_keep: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B tokens D"]:
        """Normalised features of the class token and of the patches `ids_keep` (None: of all, as timm gives)."""


def check_sizes(**sizes: int) -> None:
    """Raise InputError for a number below 1."""
    for name, size in sizes.items():
        check_range(name, size, PositiveInt)


def hide(
    patches: Float[Tensor, "B *places dim"], mask: Bool[Tensor, "B H W"], mask_token: Float[Tensor, "1 1 dim"]
) -> Float[Tensor, "B *places dim"]:
    """Embedded patches with a mask token in place of the masked ones."""
    return torch.where(mask.view(*patches.shape[:-1], 1), mask_token, patches)
