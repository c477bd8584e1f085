"""Diagrams inside a page, as SVG that takes the page's text colour; and as PNG for themselves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .html import BLUE, ORANGE, Html, html

COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#d55e00", "#8c8c8c")
_INK = "#010203"  # stands for the page's own text colour
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}


def svg_figure(draw: Callable[[Figure], object], size: tuple[float, float], label: str) -> Html:
    """A diagram as SVG; the same drawing gives the same bytes.

    Args:
        draw: draws into an empty figure.
        size: width and height in inches, 72 px each.
        label: what the diagram shows, for who cannot see it.
    """
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    buffer = io.StringIO()
    # The salt makes the names of clip paths differ between the diagrams of one page.
    style = {**_STYLE, **dict.fromkeys(colours, _INK), "svg.hashsalt": label}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # In HTML no namespace is declared; ids of groups would be the same in every diagram.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', f'width="{size[0] * 72:.0f}"', text, count=1
    )
    label = html(label).replace("\\", r"\\")
    text = re.sub("<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)
    return Html(text.replace(_INK, "currentColor").strip())


def png_figure(draw: Callable[[Figure], object], size: tuple[float, float]) -> bytes:
    """The same diagram as PNG, dark on white; arguments as :func:`svg_figure`."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
