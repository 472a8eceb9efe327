"""Figures: what they share, colours, titles and how they are written.

Only matplotlib's object API is used (:class:`~matplotlib.figure.Figure`, never ``pyplot``): pyplot
keeps every figure in a global list, which leaks memory over a long run and needs a display.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from midigenre.files import whole

INK, FAINT, GRID = "#222222", "#767676", "#d9d9d9"
BLUE, RED = "#0072B2", "#D55E00"
"""Blue and vermilion, distinguishable with any colour vision (Okabe and Ito 2008)."""


def save(figure: Figure, path: Path | str) -> Path:
    """Writes a PNG at 150 dots per inch; the file appears whole or not at all."""
    path = Path(path)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=150, facecolor="white")
    return path


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches whose layout makes room for names and titles."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.0, hspace=0.0)
    return Figure(figsize=(width, height), layout=layout)


def titles(axes: Axes, title: str, subtitle: str) -> None:
    """Title and subtitle over the left edge of the axes; the layout engine makes room for both."""
    axes.set_title(
        title, loc="left", pad=27, fontsize=13, fontweight="bold", color=INK, parse_math=False,
        wrap=True,
    )  # fmt: skip
    axes.annotate(
        subtitle, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, color=FAINT, annotation_clip=False,
    )  # fmt: skip


def small_axes(axes: Axes, title: str = "") -> None:
    """No tick marks, and a title over the left edge; for figures without a subtitle."""
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.set_title(
        title, loc="left", pad=10, fontsize=12, fontweight="bold", color=INK, parse_math=False
    )
