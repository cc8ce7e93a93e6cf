"""Matplotlib's figures as the bytes of a picture."""

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: "Figure", dpi: int = 150) -> bytes:
    """The figure as PNG."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return picture.getvalue()


def svg(figure: "Figure") -> bytes:
    """The figure as SVG, the same bytes whenever it is drawn."""
    picture = BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return picture.getvalue()
