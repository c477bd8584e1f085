"""Pages that load nothing from anywhere: style, tables and pictures are inside the file.

Whatever is put into a page is escaped, unless it is :class:`Html`, which only these functions make.
Colours follow the reader's light or dark setting; in print they are light. Nothing but the sorting
of tables needs JavaScript.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

# Told apart with any colour vision (Okabe & Ito, "Color Universal Design", 2008), on light and on
# dark paper.
BLUE, ORANGE = "#409cff", "#f08c14"
_STYLE = """
:root { color-scheme: light dark; --ink: #16181c; --paper: #fff; --faint: #c9cdd3; --soft: #f4f5f7;
        --error: #a11; --warning: #85560a; --info: #345; --good: #17602f; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #16181c; --faint: #454b54; --soft: #22262c;
          --error: #ff8a80; --warning: #f0b860; --info: #9dbbe0; --good: #7fd19b; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h2 { margin-top: 1.8em; border-bottom: 1px solid var(--faint); }
table { border-collapse: collapse; margin: .6em 0 1.4em; }
.wide { overflow-x: auto; }
th, td { border: 1px solid var(--faint); padding: .25em .6em; text-align: right; }
th { background: var(--soft); } th:first-child, td:first-child { text-align: left; }
table.text td { text-align: left; vertical-align: top; }
table.sortable th { cursor: pointer; }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; max-width: 100%; }
figcaption { font-size: 13px; max-width: 70em; }
img, svg { max-width: 100%; height: auto; }
svg.bars { background: var(--soft); margin: 0 1em .5em 0; }
details { margin: .4em 0 1em; }
.error { color: var(--error); } .warning { color: var(--warning); } .info { color: var(--info); }
.good { color: var(--good); }
.banner { border: 2px solid currentColor; border-radius: 6px; padding: .4em 1em; margin: 1em 0; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; margin: 1em 0; }
.card { border: 1px solid var(--faint); border-radius: 6px; padding: .5em 1em; }
.card b { display: block; font-size: 1.7em; }
@media print { body { max-width: none; margin: 0; font-size: 11px; }
  figure, tr, .card, .banner { break-inside: avoid; } h2 { break-after: avoid; } }
"""

# A column is sorted as numbers where all of its cells are numbers; what is undefined comes last.
_SCRIPT = """
document.querySelectorAll("table.sortable th").forEach(function (head) {
  head.title = "sort";
  head.addEventListener("click", function () {
    var table = head.closest("table"), body = table.tBodies[0], at = head.cellIndex;
    var up = head.dataset.up !== "1";
    var text = function (row) { return row.cells[at].textContent.trim(); };
    var rows = Array.from(body.rows);
    var known = rows.filter(function (row) { return text(row) !== "-"; });
    var isNumber = known.every(function (row) { return /^-?[0-9.]+ ?%?$/.test(text(row)); });
    known.sort(function (a, b) {
      var order = isNumber ? parseFloat(text(a)) - parseFloat(text(b))
                           : text(a).localeCompare(text(b));
      return up ? order : -order;
    });
    rows.filter(function (row) { return text(row) === "-"; })
        .forEach(function (row) { known.push(row); });
    known.forEach(function (row) { body.appendChild(row); });
    table.querySelectorAll("th").forEach(function (other) { delete other.dataset.up; });
    head.dataset.up = up ? "1" : "0";
  });
});
addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (item) { item.open = true; });
});
"""


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def html(value: object) -> Html:
    """``value`` as HTML: escaped, unless it is :class:`Html`."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    """All parts, each escaped if it has to be."""
    return Html(between.join(html(part) for part in parts))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """An element, such as ``tag("p", "a & b", class_="error")``; everything is escaped."""
    given = "".join(f' {key.rstrip("_")}="{escape(v)}"' for key, v in attributes.items())
    return Html(f"<{name}{given}>{join(content, '')}</{name}>")


def table(heads: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table.

    Args:
        heads: one a column.
        rows: their cells; ``-`` is an undefined value.
        kind: ``sortable``, ``text`` (columns of words) or both, joined by a blank.
    """
    head = tag("tr", *(tag("th", cell) for cell in heads))
    lines = join((tag("tr", *(tag("td", cell) for cell in row)) for row in rows), "\n")
    attributes = {"class_": kind} if kind else {}
    inner = tag("table", tag("thead", head), tag("tbody", lines), **attributes)
    return tag("div", inner, class_="wide")


def bullets(items: Iterable[object]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def folded(summary: object, *content: object) -> Html:
    """What is shown on a click; in print always."""
    return tag("details", tag("summary", summary), *content)


def figure(content: object, *caption: object) -> Html:
    """A picture with what is said of it."""
    return tag("figure", content, tag("figcaption", *caption))


def bars(counts: Sequence[int], box: Sequence[float] | None = None) -> Html:
    """A histogram.

    Args:
        counts: one a bar.
        box: lowest value, quartile, median, quartile and highest value, as shares of the width;
            they are drawn above the bars.
    """
    high, width, top = 80, 300, 0 if box is None else 22
    step, unit = width / len(counts), high / max(*counts, 1)
    drawn = "".join(
        f'<rect x="{i * step:.1f}" y="{top + high - c * unit:.1f}" width="{step - 1:.1f}" '
        f'height="{c * unit:.1f}" fill="{BLUE}"><title>{c}</title></rect>'
        for i, c in enumerate(counts)
    )
    if box is not None:
        x = [f"{share * width:.1f}" for share in box]
        drawn += (
            f'<path d="M{x[0]} 11H{x[1]}M{x[1]} 5H{x[3]}V17H{x[1]}ZM{x[3]} 11H{x[4]}" fill="none" '
            f'stroke="currentColor"/><path d="M{x[2]} 3V19" stroke="{ORANGE}" stroke-width="3"/>'
        )
    return Html(f'<svg class="bars" width="{width}" height="{top + high}" role="img">{drawn}</svg>')


def image(picture: Image.Image, alt: str = "", quality: int = 80, sharp: bool = False) -> Html:
    """A picture as JPEG inside the page.

    Args:
        picture: RGB or grey.
        alt: what is said in its place.
        quality: of JPEG.
        sharp: colours at full resolution, for coloured lines one pixel wide.
    """
    buffer = io.BytesIO()
    # 0 is 4:4:4, -1 what the encoder does of itself (4:2:0).
    picture.save(buffer, "JPEG", quality=quality, subsampling=0 if sharp else -1)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Html(f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">')


def page(title: str, body: Iterable[object]) -> str:
    """The whole page; a script is in it only where there is a table to sort."""
    content = join(body)
    script = f"<script>{_SCRIPT}</script>" if 'class="sortable' in content else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n{content}\n{script}</body></html>\n"
    )
