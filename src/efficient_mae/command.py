"""What a subcommand of `emae` is; `commands.py` names those there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pkgutil import resolve_name
from typing import Any, TypeVar

from rich.console import Console

from efficient_mae.ranges import Settings

R = TypeVar("R", bound="Result")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a command: each field is a key of what `--json` prints."""

    @property
    def status(self) -> int:
        """With which the command line ends; 0 is done."""
        return 0

    @classmethod
    def of(cls: type[R], held: dict[str, Any]) -> R:
        """What :meth:`plain` gave; raises TypeError or KeyError where it is something else."""
        return cls(**held)

    def plain(self) -> dict[str, Any]:
        """As JSON knows it; a field that need not be there (its default is None) is left out where it isn't."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        held = {one.name: (getattr(value, one.name), one.default) for one in fields(value)}
        return {name: _plain(one) for name, (one, default) in held.items() if one is not None or default is not None}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Command:
    """A subcommand; each of its parts is itself, or `module:name` within this package, imported when asked for.

    Attributes:
        settings: dataclass of :class:`efficient_mae.ranges.Settings`; each of its fields is a flag.
        function: does it, and returns what came of it.
        display: prints that for a person.
        help: one line.
        preparation: tells the process, which is the command's alone, what suits it on a device.
        environment: variables that it is given before anything is imported, unless they are set.
    """

    settings: str | type[Settings]
    function: str | Callable[..., Result]
    display: str | Callable[..., None]
    help: str
    preparation: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> type[Settings]:
        """The dataclass of its settings."""
        return self.config_of(None)

    def config_of(self, model: str | None) -> type[Settings]:
        """The same for a model of this name, or for the usual one, if the settings are such as make a model."""
        declared = resolve(self.settings)
        return declared.of(declared.model if model is None else model) if hasattr(declared, "of") else declared

    def prepare(self, config: Settings) -> None:
        """Prepare the process; for the command line alone, since a library leaves its host as it is."""
        if self.preparation:
            resolve(self.preparation)(vars(config)["device"])

    @property
    def run(self) -> Callable[[Any], Result]:
        """What does it."""
        return resolve(self.function)

    @property
    def show(self) -> Callable[[Any, Console], None]:
        """What prints its result."""
        return resolve(self.display)


def resolve(part: Any) -> Any:
    """What a name within this package stands for; what is no name is returned as it is."""
    return resolve_name(f"efficient_mae.{part}") if isinstance(part, str) else part
