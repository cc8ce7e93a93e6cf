"""Numbers within bounds: each setting declares its own in its type, and is checked when it is made.

`base_lr: Positive = 1e-3` is a float to the parser, to its help and to whoever reads the field; that it is greater
than 0 holds for the command line, for recipes and for Python alike.
"""

import inspect
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import reduce
from itertools import repeat
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from efficient_mae.errors import InputError

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
# What PyTorch's generators take, and a signed integer of 64 bits holds.
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
# One number, or (height, width).
Pixels = PositiveInt | tuple[PositiveInt, PositiveInt]

# Infinity and NaN are within no bounds but those that say so.
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
# Passes over data, of which the last may be a part of one.
Epochs = Annotated[int, Gt(0)] | Positive
NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Probability = Annotated[float, Ge(0), Le(1)]
# A part of a whole: some of it, not none.
Share = Annotated[float, Gt(0), Le(1)]
# A part that leaves something of the whole, and takes something.
Ratio = Annotated[float, Gt(0), Lt(1)]

# A path, or one behind a scheme (`wds:~/shards/{0..9}.tar`): `~` at its beginning is the user's own folder.
Location = Annotated[str, "location"]

# What can be chosen, or left to what is found where it runs.
Switch = bool | Literal["auto"]

_BOUNDS = {
    Gt: ("greater than", operator.gt),
    Ge: ("at least", operator.ge),
    Lt: ("less than", operator.lt),
    Le: ("at most", operator.le),
}
_KINDS: dict[Any, Any] = {int: Integral, float: Real}


@dataclass(frozen=True)
class Settings:
    """Base of dataclasses of settings.

    Attributes:
        ranges: the type of each field that holds numbers, with their bounds, or is a :data:`Switch`. The fields' own
            types are without.
        locations: names of the fields that are a :data:`Location`.

    Raises:
        InputError: a number of another kind than its field's, or out of its bounds; when an instance is made.
    """

    ranges = dict[str, Any]()  # no annotations: they are no fields
    locations = frozenset[str]()

    def __init_subclass__(cls) -> None:
        declared = inspect.get_annotations(cls, eval_str=True)
        inherited = [vars(base).get("ranges", {}) for base in reversed(cls.__mro__)]
        known = reduce(operator.or_, [*inherited, declared])
        cls.locations = frozenset().union(
            *(vars(base).get("locations", ()) for base in cls.__mro__),
            (name for name, kind in declared.items() if _is_location(kind)),
        )
        cls.ranges = {name: kind for name, kind in known.items() if _is_checked(kind)}
        cls.__annotations__ = {name: _plain(kind) for name, kind in declared.items()}

    def __post_init__(self) -> None:
        for name in self.locations:
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, at_home(value))
            elif isinstance(value, tuple | list):
                object.__setattr__(self, name, tuple(map(at_home, value)))
        for name, declared in self.ranges.items():
            check_range(name, getattr(self, name), declared)


def at_home(place: str) -> str:
    """A place with `~` spelt out: a shell does that for `--out ~/a`, but not for `--out=~/a`."""
    scheme, path = re.fullmatch(r"([a-z-]{2,}:)?(.*)", place, re.DOTALL).groups("")  # pyright: ignore[reportOptionalMemberAccess]
    return scheme + os.path.expanduser(path)  # noqa: PTH111 - pathlib fails on `~nobody`


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read from YAML or JSON, which know lists alone, as they are in Python."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def check_range(name: str, value: Any, declared: Any) -> None:
    """Refuse a number, or numbers, out of bounds.

    Args:
        name: what the user calls it.
        declared: its type with the bounds, such as :data:`Positive`, `Seed | None` or `tuple[Finite, ...]`.

    Raises:
        InputError: with what would be accepted.
    """
    for place, number, bounds in _numbers(name, value, declared):
        for bound in bounds:
            (limit,) = astuple(bound)
            if not _BOUNDS[type(bound)][1](number, limit):
                wanted = "finite" if math.isinf(limit) else _in_words(bounds)
                raise InputError(f"{place}={number}: must be {wanted}{_or_null(declared)}")


def describe(declared: Any) -> str:
    """The bounds in words: `at least 1`; empty where nothing is bounded but by infinity."""
    if get_origin(declared) is not Annotated:
        return " or ".join(dict.fromkeys(filter(None, map(describe, get_args(declared)))))
    return _in_words(declared.__metadata__)


def _in_words(bounds: Iterable[Any]) -> str:
    limits = [(_BOUNDS[type(bound)][0], *astuple(bound)) for bound in bounds]
    return " and ".join(f"{words} {limit}" for words, limit in limits if not math.isinf(limit))


def shown(kind: Any) -> str:
    """A type as the user reads it."""
    if kind == Switch:
        return "true, false or auto"
    if _is_union(kind):
        return " | ".join(map(shown, get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if kind is NoneType:
        return "null"
    return (kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)).replace("None", "null")


def _or_null(declared: Any) -> str:
    return ", or null" if NoneType in get_args(declared) else ""


def _numbers(name: str, value: Any, declared: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Where each number stands, the number, and its bounds.

    Raises:
        InputError: the value is of another kind.
    """
    choices = get_args(declared) if _is_union(declared) else (declared,)
    chosen = next((choice for choice in choices if _fits(value, choice)), None)
    if chosen is None:
        raise InputError(f"{name}={value!r}: must be {shown(_plain(declared))}")
    if get_origin(chosen) is Annotated:
        yield name, value, chosen.__metadata__
    elif get_origin(chosen) is tuple:
        kinds = get_args(chosen)
        for place, (one, kind) in enumerate(zip(value, repeat(kinds[0]) if ... in kinds else kinds)):
            yield from _numbers(f"{name}[{place}]", one, kind)


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value is of this kind, which is no union."""
    kind = _plain(declared)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and (... in get_args(kind) or len(value) == len(get_args(kind)))
    return isinstance(value, _KINDS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


def _plain(declared: Any) -> Any:
    """The type without bounds."""
    if get_origin(declared) is Annotated:
        return declared.__origin__
    if _is_union(declared):
        return reduce(operator.or_, map(_plain, get_args(declared)))
    return tuple[*map(_plain, get_args(declared))] if get_origin(declared) is tuple else declared


def _is_union(declared: Any) -> bool:
    return get_origin(declared) in (Union, UnionType)


def _is_location(declared: Any) -> bool:
    composed = _is_union(declared) or get_origin(declared) is tuple
    return declared == Location or (composed and any(map(_is_location, get_args(declared))))


def _is_checked(declared: Any) -> bool:
    kind = _plain(declared)
    return kind in _KINDS or kind == Switch or any(_is_checked(part) for part in get_args(kind))
