"""The methods of pre-training, by name, and the models by theirs."""

from dataclasses import fields
from typing import Any

from efficient_mae.backbones.sizes import parse_name
from efficient_mae.errors import InputError, did_you_mean, nearest
from efficient_mae.methods.base import Method, MethodConfig
from efficient_mae.methods.beit import BEiT
from efficient_mae.methods.cae import CAE
from efficient_mae.methods.mae.model import MaskedAutoencoder
from efficient_mae.methods.maskfeat import MaskFeat
from efficient_mae.methods.simmim import SimMIM
from efficient_mae.ranges import with_tuples

METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> None:
    """Let the command line, files and everything else know a method, by the name that its config has for it.

    Raises:
        ValueError: the name is another method's, or not of letters and digits alone.
    """
    name = method.Config.method
    if not name.isalnum() or METHODS.get(name, method) is not method:
        raise ValueError(f"{method.__name__}: a method of name {name!r} is known already, or the name is none")
    METHODS[name] = method


register(MaskedAutoencoder)
register(SimMIM)
register(MaskFeat)
register(BEiT)
register(CAE)


def method_of(model: str) -> type[Method]:
    """The method of a model, by the model's name.

    Raises:
        InputError: the name is of no method's model; the nearest is suggested.
    """
    name = model.partition("_")[0]
    if name not in METHODS:
        name = nearest(name, METHODS) or next(iter(METHODS))
        parse_name(model, name, METHODS[name].Config.families)  # raises: it isn't one of these either
    return METHODS[name]


def create_model(name: str, **settings: Any) -> Method:
    """A model by name, with random weights from torch's global generator.

    Args:
        name: ``{method}_vit_{tiny,small,base,large,huge}_patch{P}``, of SimMIM also
            ``simmim_{swin,swinv2}_{tiny,small,base,large,huge}_window{W}``.
        settings: those of the method. Of ``mae_...`` the fields of :class:`efficient_mae.methods.mae.MAESettings`,
            which says what each is: `img_size` (pixels, one number or (height, width)), `in_chans`, `mask_ratio`,
            `gamma`, `beta` (pixels at patch size 16), `norm_pix_loss`, `decoder_depth`, ...
            ``beta=None, gamma=0`` is MAE.

    Raises:
        InputError: anything that cannot work, with what would be accepted.

    Source: Sec. 5.1 for the defaults.
    """
    return method_of(name)(model_config(name, **settings))


def model_config(name: str, **settings: Any) -> MethodConfig:
    """What a model by name is made of; arguments as of :func:`create_model`.

    Raises:
        InputError: an unknown name or setting, or a number out of its range.
    """
    method = method_of(name)
    known = {field.name for field in fields(method.Settings)}
    for unknown in settings.keys() - known:
        raise InputError(f"{unknown}={settings[unknown]!r}: not a setting of {name}{did_you_mean(unknown, known)}")
    return method.Config.resolve(name, method.Settings(**with_tuples(settings)))
