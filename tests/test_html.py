"""Pages that stand alone: escaping, tables, pictures inside."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from projects.sa2va.figures import svg_figure
from projects.sa2va.html import Html, bars, figure, html, image, join, page, table, tag

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Elements(HTMLParser):
    """All elements and their attributes; fails where one is not closed, or is closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in _VOID:
            self._open.append(name)

    def handle_startendtag(self, name, attributes):
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self._open and self._open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def names(self) -> list[str]:
        return [name for name, _ in self.found]


def loads_nothing(elements: Elements) -> bool:
    """Whether no element fetches anything: all that is drawn is inside the page."""
    for name, attributes in elements.found:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(key) or "#"
            if not value.startswith(("#", "data:image/")):
                return False
        if name in ("link", "iframe", "object", "embed", "base"):
            return False
    return "url(http" not in "".join(elements.text)


@given(st.text(), st.text())
def test_whatever_is_put_in_stays_text(first, second):
    text = page(first, [table([first], [[second]], "sortable"), tag("p", second, title=first)])
    elements = Elements(text)
    assert elements.names().count("td") == 1 and elements.names().count("script") == 1


def test_html_is_not_escaped_twice_and_text_is():
    assert html(tag("b", "a & b")) == "<b>a &amp; b</b>"
    assert join(["<i>", Html("<i>")], "") == "&lt;i&gt;<i>"


def test_a_script_is_there_only_for_sorting():
    assert "<script" not in page("x", [table(["a"], [["1"]])])
    assert "<script" in page("x", [table(["a"], [["1"]], "sortable text")])


def test_pictures_and_diagrams_are_inside():
    def draw(canvas):
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], "o-", label="<script>")
        axes.legend()

    svg = svg_figure(draw, (3, 2), "a < b")
    assert svg == svg_figure(draw, (3, 2), "a < b"), "the same drawing gives the same bytes"
    picture = image(Image.new("RGB", (8, 8)), "x<y", sharp=True)
    text = page("x", [figure(svg, "one"), figure(picture), bars([1, 0, 3], [0, 0.2, 0.5, 0.7, 1])])
    elements = Elements(text)
    assert loads_nothing(elements)
    assert "script" not in elements.names() and "http" not in text
    assert "currentColor" in svg and "#010203" not in svg
    labels = [attributes.get("aria-label") for name, attributes in elements.found if name == "svg"]
    assert labels == ["a < b", None]
