"""Results as files to download, and as small pictures for the page."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from PIL import Image

from ..results import InferenceResult

VIEW_SIDE = 1024
HEAT_COLOURS = "inferno"
MASK, PROBABILITY, PROBABILITY_NPZ, OVERLAY = (
    "mask.png",
    "probability.png",
    "probability.npz",
    "overlay.png",
)


def mask_png(result: InferenceResult) -> bytes:
    """8-bit PNG of 0 and 255."""
    return _png(Image.fromarray(result.mask.astype(np.uint8) * np.uint8(255)))


def probability_png(result: InferenceResult) -> bytes:
    """16-bit PNG: value = round(65535 * probability)."""
    levels = np.rint(result.probability.astype(np.float64) * 65535).astype(np.uint16)
    return _png(Image.fromarray(levels))


def probability_npz(result: InferenceResult) -> bytes:
    """The map as it is, float32 [H, W] under the key ``probability``."""
    file = io.BytesIO()
    np.savez_compressed(file, probability=result.probability)
    return file.getvalue()


def overlay_png(result: InferenceResult) -> bytes:
    """8-bit RGB PNG of the frame's own size."""
    return _png(result.overlay())


FILES: dict[str, Callable[[InferenceResult], bytes]] = {
    MASK: mask_png,
    PROBABILITY: probability_png,
    PROBABILITY_NPZ: probability_npz,
    OVERLAY: overlay_png,
}
VIEWS: dict[str, Callable[[InferenceResult], np.ndarray]] = {
    "frame": lambda result: result.image,
    "overlay": lambda result: np.asarray(result.overlay()),
    "probability": lambda result: heat_map(result.probability),
    "mask": lambda result: result.mask.astype(np.uint8) * np.uint8(255),
}


def view_png(result: InferenceResult, kind: str) -> bytes:
    """A picture of :data:`VIEWS` for the page."""
    return preview_png(VIEWS[kind](result))


def preview_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG, its longer side :data:`VIEW_SIDE` at most.

    It is shrunk by area, so that a vessel one pixel wide fades but does not break.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = VIEW_SIDE / max(picture.size)
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BOX)
    return _png(picture)


def heat_map(probability: np.ndarray) -> np.ndarray:
    """float [H, W] in [0, 1] in matplotlib's colours; uint8 [H, W, 3]."""
    return matplotlib.colormaps[HEAT_COLOURS](probability, bytes=True)[..., :3]


def heat_gradient(steps: int = 9) -> str:
    """The colours of :func:`heat_map` from 0 to 1, as stops of a CSS gradient."""
    colours = matplotlib.colormaps[HEAT_COLOURS](np.linspace(0, 1, steps))
    return ", ".join(matplotlib.colors.to_hex(colour) for colour in colours)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    # Somebody waits for it: level 1 is several times faster, for files a little larger.
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
