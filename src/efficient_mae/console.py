"""What is said to the person who waits: on one line where one is meant, and without what a terminal would obey."""

from typing import Any

from rich.console import Console


def printable(name: bytes | str) -> str:
    """The name on one line of valid text: line breaks, control characters and stray bytes as backslash escapes."""
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape")
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PlainConsole(Console):
    """Prints no control characters that a text brings along: a file's name may hold some that a terminal obeys."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_visible(item) if isinstance(item, str) else item for item in objects), **options)


def _visible(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


# Everything said while working goes to stderr; stdout is for results.
console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the user, on stderr."""
    console.print(message, markup=False)
