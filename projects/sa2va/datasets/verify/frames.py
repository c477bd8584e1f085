"""What one frame shows when image and labels are read in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ...errors import DataError
from ..base import VesselDataset
from ..hashes import pixel_hash
from ..image_io import exif_orientation, read_image
from ..near_duplicates import perceptual_hash, thumbnail
from ..records import Obj, Record, rasterise

TWICE = 0.8
"""Intersection over union from which two regions are one that was drawn twice."""
OVERLAP = 0.1
"""Share of the smaller region from which an overlap is told; neighbours share their border."""
_RING_PX = 5


@dataclass
class FrameFacts:
    """What was read off one frame.

    Attributes:
        error: why image or mask cannot be read; then the rest is unset.
        pixels, perceptual: hashes of the image.
        small: thumbnail, uint8 [64, 64].
        turned: whether an EXIF tag turns it.
        mean, deviation: of the grey values, 0 to 255.
        vessel_fraction: share of the image that is labelled, 0 to 1.
        contrast: mean grey value in the labelled region minus that of a ring of 5 px around it;
            None where nothing is labelled or labels have another size than the image.
        empty: phrases whose mask is empty.
        mostly: phrases whose mask is more than half of the image.
        no_pixel: polygons that cover no pixel.
        pairs: (IoU, share of the smaller one, both polygons where they are polygons) of regions
            that overlap.
    """

    error: DataError | None = None
    pixels: str = ""
    perceptual: str = ""
    small: np.ndarray | None = None
    turned: bool = False
    mean: float = 0.0
    deviation: float = 0.0
    vessel_fraction: float = 0.0
    contrast: float | None = None
    empty: list[str] = field(default_factory=list)
    mostly: list[str] = field(default_factory=list)
    no_pixel: list[np.ndarray] = field(default_factory=list)
    pairs: list[tuple[float, float, list[np.ndarray]]] = field(default_factory=list)


def read_frame(dataset: VesselDataset, index: int) -> FrameFacts:
    """Reads image and labels of one record; what cannot be read is in ``error``."""
    record = dataset.records[index]
    try:
        # Not dataset.image, which refuses an image of another size than its labels.
        image = read_image(record.image_path, dataset.intensity)
        objects = dataset.labelled(index)
        masks = [rasterise(obj, record.height, record.width) for obj in objects]
        turned = exif_orientation(record.image_path) != 1
    except DataError as error:
        return FrameFacts(error=error)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    facts = FrameFacts(
        pixels=pixel_hash(image),
        perceptual=perceptual_hash(image),
        small=np.rint(thumbnail(image)).astype(np.uint8),
        turned=turned,
        mean=float(mean[0, 0]),
        deviation=float(deviation[0, 0]),
    )
    for obj, mask in zip(objects, masks, strict=True):
        share = float(mask.mean())
        if share == 0:
            facts.empty.append(obj.phrase)
        elif share > 0.5:
            facts.mostly.append(obj.phrase)
    if masks:
        union = np.maximum.reduce(masks)
        facts.vessel_fraction = float(union.mean())
        if union.shape == grey.shape:
            facts.contrast = _contrast(grey, union)
    _look_at_regions(objects, record, facts)
    return facts


def _contrast(grey: np.ndarray, union: np.ndarray) -> float | None:
    kernel = np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)
    ring = cv2.dilate(union, kernel) - union
    if not union.any() or not ring.any():
        return None
    return float(grey[union > 0].mean() - grey[ring > 0].mean())


def _look_at_regions(objects: Sequence[Obj], record: Record, facts: FrameFacts) -> None:
    """Regions without a pixel, and regions that overlap, polygon by polygon."""
    regions: list[tuple[dict, list[np.ndarray]]] = []
    for obj in objects:
        rles = [([rle], []) for rle in obj.rle]
        if obj.polygons:
            flat = [polygon.ravel().tolist() for polygon in obj.polygons]
            drawn = coco_mask.frPyObjects(flat, record.height, record.width)
            rles += [([rle], [xy]) for rle, xy in zip(drawn, obj.polygons, strict=True)]
        for (rle,), polygon in rles:
            if coco_mask.area(rle):
                regions.append((rle, polygon))
            else:
                facts.no_pixel += polygon
    if len(regions) < 2:
        return
    rles = [rle for rle, _ in regions]
    areas = np.asarray(coco_mask.area(rles), np.float64)
    iou = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))
    for a, b in np.argwhere(np.triu(iou, 1) > 0):
        shared = iou[a, b] * (areas[a] + areas[b]) / (1 + iou[a, b])
        share = shared / min(areas[a], areas[b])
        if share >= OVERLAP:
            facts.pairs.append((float(iou[a, b]), float(share), regions[a][1] + regions[b][1]))
