"""A new model that starts from trained weights: what of them is taken, what is adapted, and what is new.

`emae pretrain --weights`; nothing is left at random in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Size, Tensor

from efficient_mae.backbones import SIZES, Backbone
from efficient_mae.backbones.sizes import SWIN_SIZES
from efficient_mae.errors import InputError
from efficient_mae.interop.adapt import adapt_encoder
from efficient_mae.interop.files import Trained
from efficient_mae.interop.foreign_files import first
from efficient_mae.methods import Method, backbone_of

# Share of the weights of an encoder that must fit.
_LEAST_TAKEN = 0.5


@dataclass(frozen=True)
class Start:
    """Where a model's parameters come from: number of each by name. The table of positions counts as one of them.

    Attributes:
        taken: as they were.
        adapted: to another size of image, of patches, or number of channels.
        new: random, for the weights have none that fit.
        left_out: of the weights, for the model has no place for them.
    """

    taken: dict[str, int]
    adapted: dict[str, int]
    new: dict[str, int]
    left_out: dict[str, int]

    @property
    def text(self) -> str:
        """All that on one line."""
        parts = [f"{sum(self.taken.values()):,} parameters taken"]
        for what, numbers in (("adapted", self.adapted), ("new, at random", self.new)):
            named = f" ({first(numbers)})" if numbers else ""
            parts.append(f"{sum(numbers.values()):,} {what}{named}")
        if self.left_out:
            parts.append(f"{sum(self.left_out.values()):,} of the weights left out ({first(self.left_out)})")
        return ", ".join(parts)


def start_from(model: Method, trained: Trained, where: str, channels: str | None = None) -> Start:
    """Give a model the weights that it has a place for, in place.

    The encoder's are adapted to the model's images (:func:`efficient_mae.interop.adapt_encoder`). Beyond them, a
    decoder for one, those are taken that have the same name and shape.

    Args:
        model: newly made, with random weights.
        trained: what was read.
        where: it was read from, for errors.
        channels: what becomes of the patch embedding if the number of channels differs; see `adapt_encoder`.

    Raises:
        InputError: under half of the encoder's weights fit, or its heads are others, the first that don't are named;
            or some aren't finite.
    """
    encoder = backbone_of(trained.model)
    _check_family(model, encoder, where)
    config, own, old = model.config, model.state_dict(), trained.model.state_dict()
    if odd := [name for name, value in old.items() if not value.isfinite().all()]:
        raise InputError(
            f"weights={where}: {first(odd)} hold numbers that aren't finite; give weights from before that"
        )
    changed = {"img_size": config.img_size, "patch_size": config.patch_size, "in_chans": config.in_chans}
    try:
        adapted = adapt_encoder(encoder, **changed, channels=channels)
    except InputError as error:
        raise InputError(f"weights={where}: {error}") from None
    _check_fit(model, encoder, adapted, where)
    theirs = old | adapted.state_dict()
    if isinstance(trained.model, Method):
        _adapt_decoder(theirs, model, trained.model)
    fitting = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(own | fitting)
    same = {name for name in fitting if name in old and _is_same(old[name], fitting[name])}
    numbers = {name: value.numel() for name, value in own.items()}
    return Start(
        taken={name: numbers[name] for name in numbers if name in same},
        adapted={name: numbers[name] for name in numbers if name in fitting.keys() - same},
        new={name: numbers[name] for name in numbers if name not in fitting},
        left_out={name: value.numel() for name, value in old.items() if name not in fitting} | trained.left_out,
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool((old == new).all())


def _check_family(model: Method, encoder: Backbone, where: str) -> None:
    backbone = model.backbone
    if encoder.family != backbone.family:
        raise InputError(
            f"weights={where}: of an encoder of family {encoder.family}, and this model's is {backbone.family}"
        )


def _check_fit(model: Method, encoder: Backbone, adapted: Backbone, where: str) -> None:
    """Refuse weights of which under half would be taken; what was adapted fits."""
    own = {name: value.shape for name, value in model.backbone.state_dict().items()}
    theirs = {name: value.shape for name, value in encoder.state_dict().items()}
    odd = [name for name, value in adapted.state_dict().items() if own.get(name) != value.shape]
    total = sum(shape.numel() for shape in theirs.values())
    fit = total - sum(theirs[name].numel() for name in odd)
    if fit < _LEAST_TAKEN * total:
        shown = [f"{name} is {tuple(theirs[name])} there and {_shown(own, name)} here" for name in odd[:3]]
        raise InputError(
            f"weights={where}: {fit:,} of their encoder's {total:,} parameters fit this model, less than half: "
            f"{'; '.join(shown)}; {_proposal(encoder, model.config.method)}"
        )
    heads = encoder.arguments["num_heads"]
    if heads != model.backbone.arguments["num_heads"]:
        raise InputError(
            f"weights={where}: of {heads} heads, and this model has {model.backbone.arguments['num_heads']}; "
            "give weights of as many"
        )


def _shown(shapes: Mapping[str, Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "missing"


def _proposal(encoder: Backbone, method: str) -> str:
    width, depth, window = encoder.dims[0], encoder.arguments["depth"], encoder.arguments.get("window_size")
    sizes = SIZES if window is None else SWIN_SIZES
    near = [name for name, size in sizes.items() if size.embed_dim == width]
    if not near:
        return f"no size of this family is {width} wide"
    size = next((name for name in near if sizes[name].depth == depth), near[0])
    deep = "" if depth == sizes[size].depth else f" --depth {','.join(map(str, depth)) if window else depth}"
    form = f"vit_{size}_patch{encoder.patch_size}" if window is None else f"{encoder.family}_{size}_window{window}"
    return f"give --model {method}_{form}{deep}"


def _adapt_decoder(theirs: dict[str, Tensor], model: Method, trained: Method) -> None:
    """Stretch the decoder's positions as the encoder's; leave out blocks whose heads are others."""
    name = "decoder_pos_embed"
    if name in theirs:
        size = list(model.config.grid_size)
        theirs[name] = resample_abs_pos_embed(theirs[name], new_size=size, old_size=list(trained.config.grid_size))
    heads = [getattr(config, "decoder_num_heads", None) for config in (model.config, trained.config)]
    if heads[0] != heads[1]:
        for name in [name for name in theirs if name.startswith("decoder_blocks.")]:
            del theirs[name]
