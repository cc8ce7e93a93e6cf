"""What a method of pre-training is to the rest of the house: a guest of its one engine.

B images, C channels, h x w pixels, H x W patches, N = H * W patches of an image, T terms of the batch's loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from efficient_mae.backbones import BACKBONES, Backbone
from efficient_mae.backbones.patches import as_pair
from efficient_mae.backbones.sizes import parse_name
from efficient_mae.errors import InputError
from efficient_mae.ranges import Pixels, PositiveInt, Settings, with_tuples

# What a backbone's names begin with in memory; in files, and wherever they are told, they don't.
BACKBONE = "backbone."


@runtime_checkable
class Plan(Protocol):
    """What is hidden in a batch and what is asked for: a dataclass of tensors, which a loader's worker makes."""

    @property
    def mask(self) -> Bool[Tensor, "B H W"]:
        """True = hidden from the encoder."""
        ...

    @property
    def weights(self) -> Float[Tensor, " T"]:
        """Of each term of the loss."""
        ...

    @property
    def images(self) -> Int64[Tensor, " T"]:
        """The image, of the batch, that each term belongs to."""
        ...

    def to(self, device: torch.device | str) -> "Plan":
        """The same on a device."""
        ...


@runtime_checkable
class Planner(Protocol):
    """Makes plans; it has no weights and no device, and can be pickled."""

    def __call__(self, noise: Float[Tensor, "B N"], progress: Float64[Tensor, " B"] | None = None) -> Plan:
        """A plan that follows from random numbers alone.

        Args:
            noise: independent numbers from 0 to 1, one a patch.
            progress: of training when each image is seen, from 0 to 1; None stands for its end.
        """
        ...


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        weighted_sum: of the terms' errors; differentiable. The engine divides it by the weights of the global batch.
        errors: of each term, before weighting.
        plan: that was followed.
    """

    weighted_sum: Float[Tensor, ""]
    errors: Float[Tensor, " T"]
    plan: Plan

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The weighted mean of this batch's errors; 0 where it has no terms, with a gradient of 0."""
        total = self.plan.weights.to(self.weighted_sum.dtype).sum()
        return self.weighted_sum / (total + (total == 0))

    @property
    def mask(self) -> Bool[Tensor, "B H W"]:
        """True = hidden from the encoder."""
        return self.plan.mask


@dataclass(frozen=True)
class PublishedCost:
    """What a paper says that a forward pass costs.

    Attributes:
        table: of the paper.
        model: its name.
        settings: of the model; None counts the encoder alone, over a whole image.
        name: of what is counted, as the paper has it.
        mask_ratio: share of patches hidden.
        gmacs: multiply-accumulates of one image, 1e9; papers call them GFLOPs.
    """

    table: str
    model: str
    settings: dict[str, Any] | None
    name: str
    mask_ratio: float
    gmacs: float


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """What can be chosen of a model of a given name; a method adds its own, and each is a flag."""

    img_size: Pixels = 224
    """pixels, one number or [height, width]"""
    in_chans: PositiveInt = 3
    """channels that images are converted to: 1 grey, 3 RGB, 4 RGBA"""
    depth: PositiveInt | None = None
    """encoder blocks (null: the model's)"""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(MethodSettings):
    """Everything that a model is made of; what a checkpoint records. A method's own derives from its settings too.

    Attributes:
        method: with which the names of its models begin.
        painted: what pictures fill hidden patches with, a sentence; empty where these are plain pixels.
        added: settings that the first versions did not write; a file without them has their defaults.
        error: what each term of the loss is before it is weighted, as pictures say it.
        families: of encoders that the method takes, by the word that names of its models have for them.
        family: of this model's encoder, among :data:`BACKBONES`.
    """

    method = ""  # no annotations: they are no fields
    painted = ""
    added = frozenset[str]()
    error = "mean squared error"
    families = ("vit",)
    family = "vit"

    img_size: tuple[PositiveInt, PositiveInt] = field()
    depth: PositiveInt = field()
    patch_size: PositiveInt = field()
    embed_dim: PositiveInt = field()
    num_heads: PositiveInt = field()

    @classmethod
    def resolve(cls, name: str, settings: MethodSettings, **derived: Any) -> Any:
        """What a model of a name is made of.

        Args:
            name: of a model of this method.
            settings: that were chosen.
            derived: what follows from the two.

        Raises:
            InputError: an unknown name, or a number out of its range.
        """
        size, patch_size = parse_name(name, name.partition("_")[0], cls.families)
        chosen = {one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)}
        return cls(**chosen | {
            "img_size": as_pair(settings.img_size),
            "patch_size": patch_size,
            "embed_dim": size.embed_dim,
            "depth": settings.depth or size.depth,
            "num_heads": size.num_heads,
        } | derived)  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MethodConfig":
        """The config that :meth:`to_dict` wrote.

        Raises:
            KeyError: a value is missing.
            TypeError: there are others.
        """
        if missing := {one.name for one in fields(cls)} - cls.added - values.keys():
            raise KeyError(min(missing))
        plain = with_tuples(values)
        plain["img_size"] = as_pair(plain["img_size"])
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them."""
        return asdict(self) | {"img_size": list(self.img_size)}

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def backbone(self) -> dict[str, Any]:
        """The arguments that build the encoder, as timm names them too."""
        return {name: getattr(self, name) for name in BACKBONES[self.family].ARGUMENTS}

    def make_backbone(self) -> Backbone:
        """The encoder, with random weights."""
        return BACKBONES[self.family](**self.backbone)

    def unit(self, device: torch.device) -> int | None:
        """Images that the model takes at a time on a device, for which plans are cut; None for all of a batch."""
        return None

    def planner(self, unit: int | None = None) -> Planner:
        """Makes this model's plans, for so many images at a time."""
        raise NotImplementedError

    def variants(self) -> Mapping[str, "MethodConfig"]:
        """What `emae bench step` compares on one and the same model, by name; the first is what others are beside."""
        return {self.method: self}

    def baseline(self) -> "MethodConfig":
        """What this model's costs are measured beside: of MAE's kin MAE at mask ratio 0.75, else the model itself."""
        return self

    def tokens(self, plan: Any) -> dict[str, float]:
        """Tokens and patches of an image, mean over a plan of its own, by what they are."""
        return {}

    def paper_gmacs(self, images: int = 256, seed: int = 0) -> float | None:
        """Multiply-accumulates of one image's forward pass, 1e9, where :meth:`published` counts otherwise."""
        return None

    @classmethod
    def published(cls) -> tuple[PublishedCost, ...]:
        """What the method's paper says of its costs."""
        return ()


class Method(nn.Module, ABC):
    """A backbone, and what it learns from.

    In its state dict, and so in files, the backbone's parameters carry timm's names, without the prefix that
    `named_parameters` gives them; the method's own lie beside them, under other names.

    Attributes:
        Settings: what can be chosen; its fields are flags.
        Config: what a model is made of.
    """

    Settings: ClassVar[type[MethodSettings]]
    Config: ClassVar[type[MethodConfig]]

    def __init__(self, config: MethodConfig):
        super().__init__()
        self.config = config
        self.backbone = config.make_backbone()
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C h w"], plan: Any, /) -> Output:
        """Learn from normalised images, by a plan that the config's planner made.

        Raises:
            InputError: images of a shape that this model does not take.
        """

    def plan(self, batch_size: int, generator: torch.Generator | None = None) -> Plan:
        """A random plan for a batch, on the generator's device."""
        device = generator.device if generator is not None else None
        rows, columns = self.config.grid_size
        return self.config.planner()(torch.rand(batch_size, rows * columns, generator=generator, device=device))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that are never decayed, beside biases, norms and tokens."""
        return {BACKBONE + name for name in self.backbone.no_weight_decay()}

    def after_step(self) -> None:
        """Called when a training step is done, also one that was skipped, with the weights as they were."""

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B C h w"], mask: Any = None) -> Float[Tensor, "B C h w"] | None:
        """:meth:`paint` of what the model makes of images.

        Args:
            images: normalised images.
            mask: as for a forward pass.
        """
        return self.paint(images, self(images, mask))

    def paint(self, images: Float[Tensor, "B C h w"], out: Any) -> Float[Tensor, "B C h w"] | None:
        """The images as the model fills them in; None if it predicts no pixels."""
        return None


def backbone_of(model: Method | Backbone) -> Backbone:
    """The encoder of a whole model, or the encoder that it is."""
    return model.backbone if isinstance(model, Method) else model


def check_mask(mask: Tensor, batch_size: int, grid_size: tuple[int, int]) -> None:
    """Raise InputError unless it is a mask of so many images, of this grid."""
    if tuple(mask.shape) != (batch_size, *grid_size) or mask.dtype != torch.bool:
        raise InputError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}: "
            f"must be torch.bool of shape {(batch_size, *grid_size)}, True = masked"
        )


def _without_prefix(module: nn.Module, tensors: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    named = dict(tensors)
    tensors.clear()
    for name, tensor in named.items():
        short = prefix + name[len(prefix) :].removeprefix(BACKBONE) if name.startswith(prefix) else name
        if short in tensors:
            raise ValueError(f"{type(module).__name__}: its own {short} has the name of one of its backbone's")
        tensors[short] = tensor


def _with_prefix(module: Method, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in module.backbone.state_dict():
        if prefix + name in tensors:
            tensors[prefix + BACKBONE + name] = tensors.pop(prefix + name)
