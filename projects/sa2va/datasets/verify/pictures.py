"""The picture of a finding: the frames that it is about, with labels and what is wrong."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ...errors import DataError
from ..base import VesselDataset
from ..image_io import read_image
from ..records import rasterise
from .findings import Finding, FrameRef

LABEL_COLOUR = (64, 156, 255)
WRONG_COLOUR = (240, 140, 20)
_PAPER = (60, 64, 70)
_MOST_CANVAS = 3.0
"""A polygon that lies farther out than this many image sizes is drawn in part."""


def draw_finding(
    finding: Finding, datasets: dict[str, VesselDataset], side: int = 300
) -> list[tuple[FrameRef, Image.Image]]:
    """Draws the first two frames of a finding.

    Blue: outline of the labels; orange: the regions that the finding is about. Where they leave
    the image, the picture shows what lies around it.

    Args:
        finding: what is drawn.
        datasets: data sets by split.
        side: longest side of a picture in pixels.

    Returns:
        Pictures of the frames that can be read; none where none can.
    """
    pictures = []
    for number, frame in enumerate(finding.frames[:2]):
        if frame.index is None or frame.split not in datasets:
            continue
        regions = finding.regions if number == 0 else ()
        try:
            picture = _draw(datasets[frame.split], frame.index, regions, side)
        except DataError:  # that it cannot be read is a finding of its own
            continue
        pictures.append((frame, picture))
    return pictures


def _draw(
    dataset: VesselDataset, index: int, regions: tuple[tuple[float, ...], ...], side: int
) -> Image.Image:
    record = dataset.records[index]
    image = read_image(record.image_path, dataset.intensity)
    height, width = image.shape[:2]
    polygons = [np.asarray(points, np.float64).reshape(-1, 2) for points in regions]
    labels = [xy for obj in record.objects for xy in obj.polygons]
    corners = np.array([[0.0, 0.0], [width, height]])
    limit = np.array([width, height]) * _MOST_CANVAS
    points = np.concatenate([corners, *polygons, *labels]).clip(-limit, limit)
    low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    scale = side / float((high - low).max())
    canvas = Image.new("RGB", tuple(np.maximum((high - low) * scale, 1).astype(int)), _PAPER)
    resized = Image.fromarray(image).resize(
        (max(int(width * scale), 1), max(int(height * scale), 1)), Image.Resampling.BOX
    )
    canvas.paste(resized, tuple((-low * scale).astype(int)))
    draw = ImageDraw.Draw(canvas)
    for xy in labels:
        _outline(draw, (xy - low) * scale, LABEL_COLOUR, 1)
    for obj in record.objects:
        if obj.rle or obj.mask_path is not None:
            _tint(canvas, rasterise(obj, record.height, record.width), -low * scale, scale)
    for xy in polygons:
        _outline(draw, (xy - low) * scale, WRONG_COLOUR, 2)
    return canvas


def _outline(
    draw: ImageDraw.ImageDraw, xy: np.ndarray, colour: tuple[int, int, int], width: int
) -> None:
    points = [tuple(point) for point in xy]
    if len(points) > 1:
        draw.line([*points, points[0]], fill=colour, width=width)
    for x, y in points if len(points) < 3 else ():
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=2)


def _tint(canvas: Image.Image, mask: np.ndarray, offset: np.ndarray, scale: float) -> None:
    """Lays a mask over its place in the picture, half transparent."""
    size = max(int(mask.shape[1] * scale), 1), max(int(mask.shape[0] * scale), 1)
    alpha = Image.fromarray(mask * np.uint8(140)).resize(size, Image.Resampling.BOX)
    canvas.paste(LABEL_COLOUR, tuple(offset.astype(int)), alpha)
