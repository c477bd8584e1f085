"""What is shown of frames and results, as HTML; pictures and files are links to the server."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import numpy as np

from ...errors import UserError
from ...html import Html, join, tag
from ..results import InferenceResult
from . import drawing

_PANELS = {
    "overlay": "Vessels over the frame",
    "frame": "Frame",
    "probability": "Probability",
    "mask": "Mask",
}
_DOWNLOADS = {
    drawing.MASK: "Mask (PNG)",
    drawing.PROBABILITY: "Probability (16-bit PNG)",
    drawing.PROBABILITY_NPZ: "Probability (npz)",
    drawing.OVERLAY: "Overlay (PNG)",
}
# Below this, pixels are drawn as squares: smoothed, a small frame looks as if it had details.
_SMALL = 512


def empty() -> Html:
    """Before there is a frame."""
    return tag("div", "Upload a frame or choose an example, then run.", class_="v-empty")


def thumbnails(images: Iterable[np.ndarray]) -> Html:
    """Examples, uint8 [h, w, 3], as numbered buttons; their names are not shown."""
    buttons = []
    for number, image in enumerate(images):
        data = base64.b64encode(drawing.preview_png(image)).decode("ascii")
        picture = Html(f'<img src="data:image/png;base64,{data}" alt="Example {number + 1}">')
        buttons.append(tag("button", picture, type="button", **{"data-index": str(number)}))
    name = tag("p", "Or choose an example", class_="v-small-print")
    return join((name, tag("div", *buttons, class_="v-thumbs")))


def threshold_source(text: str) -> Html:
    """Where the slider starts, and why."""
    return tag("p", f"At start: {text}", class_="v-small-print")


def message(error: UserError) -> Html:
    """An error in its three parts."""
    parts = {"Found": error.found, "Expected": error.expected, "What to do": error.fix}
    said = [join((tag("dt", name), tag("dd", text)), "") for name, text in parts.items() if text]
    return tag("dl", *said, class_="v-message", role="alert")


def frame(token: str, shape: tuple[int, ...]) -> Html:
    """A frame that the model has not seen."""
    figure = _figure(token, "frame", shape, None, f"Frame, {shape[1]} x {shape[0]} pixels")
    return tag("div", figure, class_="v-panels v-one")


def result(token: str, shown: InferenceResult) -> Html:
    """Numbers, four pictures and downloads.

    Args:
        token: of the result.
        shown: the result, cut at the threshold that is shown.
    """
    figures = [_figure(token, kind, shown.mask.shape, shown.threshold) for kind in _PANELS]
    links = [_download(token, name, shown.threshold) for name in _DOWNLOADS]
    return join(
        (
            _notes(shown),
            tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in numbers(shown).items()),
                class_="v-numbers", **{"aria-live": "polite"}),
            tag("div", *figures, class_="v-panels"),
            tag("div", *links, class_="v-downloads"),
        )
    )  # fmt: skip


def numbers(shown: InferenceResult) -> dict[str, Html]:
    """What is said of a result, by name."""
    height, width = shown.mask.shape
    seconds = shown.timing
    parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    pixels = f"{int(shown.mask.sum())} of {shown.mask.size} pixels"
    return {
        "Vessel": _value(f"{100 * shown.mask.mean():.2f} %", pixels),
        "Threshold": _value(f"{shown.threshold:g}", "probability at least"),
        "Model's answer": _value(shown.answers[0] or "none", _about_answer(shown)),
        "Time": _value(f"{sum(seconds.values()):.2f} s", parts),
        "Frame": _value(f"{width} x {height}", "pixels"),
    }


def _value(value: str, note: str) -> Html:
    return join((value, Html("<br>"), tag("small", note)), "")


def _about_answer(shown: InferenceResult) -> str:
    if not shown.answers[0]:
        return "this model has no language"
    return "holds [SEG]" if shown.seg_emitted[0] else "holds no [SEG]"


def _notes(shown: InferenceResult) -> Html:
    if shown.seg_emitted[0]:
        return Html("")
    if shown.presence is not None:
        text = (
            f"By the model's answer it is not in this frame: its presence {shown.presence[0]:.2f} "
            "is below model.presence_threshold."
        )
        return tag("p", text, class_="v-note")
    text = "The answer holds no [SEG], so there is no mask. Ask as in training, for example: "
    return tag("p", text, tag("i", "blood vessel"), class_="v-note")


def _figure(
    token: str, kind: str, shape: tuple[int, ...], threshold: float | None, caption: str = ""
) -> Html:
    height, width = shape[:2]
    small = ' class="v-small"' if max(height, width) < _SMALL else ""
    said = caption or _PANELS[kind]
    source = f"results/{token}/view/{kind}.png" + _query(threshold)
    picture = Html(
        f'<img src="{escape(source)}" alt="{escape(said)}" data-view="{kind}" '
        f'width="{width}" height="{height}"{small}>'
    )
    scale = Html("")
    if kind == "probability":
        scale = tag("span", "0", tag("i"), "1", class_="v-scale")
    return tag("figure", tag("figcaption", tag("span", said), scale), picture)


def _download(token: str, name: str, threshold: float) -> Html:
    target = f"results/{token}/file/{name}" + _query(threshold)
    return tag("a", _DOWNLOADS[name], href=target, download=f"vessel_{name}")


def _query(threshold: float | None) -> str:
    return "" if threshold is None else f"?threshold={threshold!r}"
