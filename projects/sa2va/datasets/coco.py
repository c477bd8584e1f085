"""COCO instances JSON: polygons and RLE, one vessel class or a phrase for each category."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError, listing, suggest
from ..processing.phrases import repeated
from .base import VesselDataset
from .image_io import exif_orientation, read_sizes
from .records import Findings, Obj, Record, is_drawable, parse_polygon, parse_rle, read_json

_IMAGE_KEYS = {"id": int | str, "file_name": str, "width": int, "height": int}
_MODES = ("union", "category", "instance")
_CATEGORY_PHRASES = ("description", "name")
_UNLABELLED = ("empty_mask", "drop", "error")
_FORM = "a COCO instances file: an object with the lists images, annotations and categories"
_DRAW = "draw the labels on the frames that are trained on, or scale the annotations to them"
_EXPORT = "export the annotations again from the labelling tool, or remove these entries"


@DATASETS.register_module()
class CocoVesselDataset(VesselDataset):
    """Frames of a COCO instances file, in the file's order.

    Args:
        ann_file: the JSON, below ``data_root``.
        image_dir: folder that ``file_name`` of the images starts from, below ``data_root``.
        phrase: what is asked in mode ``union``.
        mode: ``union``: all annotations of an image united under ``phrase``. ``category``: one
            phrase a category that the image has, its annotations united. ``instance``: one phrase
            an annotation.
        category_phrase: the category's key that is its phrase, ``description`` (the name, where
            there is none) or ``name``.
        unlabelled: images without annotation: ``empty_mask`` (default and only possible in mode
            ``union``: nothing is to be found there), ``drop`` or ``error`` (default otherwise).
        **common: see :class:`VesselDataset`.

    Raises:
        ConfigError: an unknown mode or option.
        DataError: everything wrong in the file at once: not COCO, no images, no annotations,
            duplicate image ids or file names, annotations of unknown images or categories,
            missing images, sizes that disagree with the real file, polygons with fewer than 3
            points or outside the image, broken RLE.
    """

    def __init__(
        self,
        ann_file: str | Path,
        image_dir: str | Path,
        phrase: str = "blood vessel",
        mode: str = "union",
        category_phrase: str = "description",
        unlabelled: str | None = None,
        **common: Any,
    ) -> None:
        self.ann_file, self.image_dir = Path(ann_file), Path(image_dir)
        self.mode = _one_of("mode", mode, _MODES)
        self.category_phrase = _one_of("category_phrase", category_phrase, _CATEGORY_PHRASES)
        self.phrase = phrase if mode == "union" else None
        fallback = "empty_mask" if mode == "union" else "error"
        self.unlabelled = _one_of("unlabelled", unlabelled or fallback, _UNLABELLED)
        if self.unlabelled == "empty_mask" and mode != "union":
            raise ConfigError(
                f"unlabelled='empty_mask' with mode={mode!r}",
                "'drop' or 'error': without a category there is no phrase to ask",
                "set `unlabelled` to 'drop' or 'error'",
            )
        super().__init__(**common)

    def load_records(self) -> list[Record]:
        """Reads the file; see :class:`VesselDataset`."""
        ann_file, self.image_root = self.resolve(self.ann_file), self.resolve(self.image_dir)
        data = read_json(ann_file, _FORM)
        findings = Findings(ann_file)
        images, annotations, categories = _lists(data, ann_file)
        phrases = self._category_phrases(categories, findings)
        records = self._images(images, findings)
        by_image = _annotations(annotations, records, phrases, findings)
        findings.raise_if_any()

        out = []
        for image_id, record in records.items():
            record.objects = self._objects(by_image[image_id], phrases)
            if not record.objects and self.unlabelled == "error":
                findings.add(
                    f"{record.name} has no annotation",
                    "an annotation for every image",
                    "label it, or set unlabelled='drop'",
                    "unlabelled",
                    record.name,
                )
            if record.objects or self.unlabelled == "empty_mask":
                record.objects = record.objects or [Obj(str(self.phrase))]
                out.append(record)
        findings.raise_if_any()
        return out

    def _category_phrases(self, categories: list[dict], findings: Findings) -> dict[Any, str]:
        phrases = {}
        for category in categories:
            text = category.get(self.category_phrase) or category.get("name")
            if self.mode != "union" and not str(text or "").strip():
                findings.add(
                    f"category {category.get('id')!r} has no phrase",
                    "a `description` or a `name` for every category",
                    "fill it in in the annotation file",
                )
            if isinstance(category.get("id"), int | str):
                phrases[category["id"]] = str(text)
        # The very same phrase unites them; another spelling would split one thing in two.
        if self.mode == "category" and (twice := repeated(dict.fromkeys(phrases.values()))):
            findings.add(
                f"categories with one phrase in several spellings: {listing(twice, 3)}",
                "one spelling of a phrase, which unites categories, or phrases that differ by more "
                "than case and white space",
                "correct the `description` or `name` of the categories in the annotation file",
            )
        return phrases

    def _images(self, images: list[dict], findings: Findings) -> dict[Any, Record]:
        """Checks every image against its file; returns the records by image id."""
        good = []
        for number, image in enumerate(images):
            wrong = [k for k, types in _IMAGE_KEYS.items() if not isinstance(image.get(k), types)]
            if wrong:
                findings.add(
                    f"image entry {number} without (or with a wrong kind of) {', '.join(wrong)}",
                    "id, file_name, width and height for every image",
                    _EXPORT,
                )
            else:
                good.append(image)
        for key, what in (("id", "image id"), ("file_name", "file name")):
            for value, count in Counter(image[key] for image in good).items():
                if count > 1:
                    findings.add(
                        f"duplicate {what} {value!r} ({count} times)",
                        f"a different {what} for every image",
                        "remove the repeated entries, or renumber merged files",
                        "repeated_entry",
                    )
        paths = [self.image_root / image["file_name"] for image in good]
        records = {}
        for image, path, size in zip(good, paths, read_sizes(paths), strict=True):
            written = (image["width"], image["height"])
            if isinstance(size, DataError):
                findings.add_error(size, image=image["file_name"])
            elif size != written:
                turned = size == written[::-1] and exif_orientation(path) > 4
                findings.add(
                    f"{image['file_name']} is {size[0]} x {size[1]} px, but its labels are drawn "
                    f"at {written[0]} x {written[1]} px"
                    + (" (its EXIF tag turns it; pixels are read as stored)" if turned else ""),
                    "width and height of the annotation file equal to those of the image files",
                    _DRAW,
                    "label_size",
                    image["file_name"],
                )
            records[image["id"]] = Record(path, str(image["file_name"]), *written)
        return records

    def _objects(self, annotations: list[tuple[Any, Obj]], phrases: dict[Any, str]) -> list[Obj]:
        if self.mode == "instance":
            return [Obj(phrases[cat], obj.polygons, obj.rle) for cat, obj in annotations]
        # Categories with one and the same phrase are one question, so they are one object.
        groups: dict[str, Obj] = {}
        # In the order of the file's categories, so that the order of phrases means the same for
        # every image. sorted() keeps the annotations of a category in their order.
        rank = {category: number for number, category in enumerate(phrases)}
        for category, obj in sorted(annotations, key=lambda pair: rank[pair[0]]):
            phrase = str(self.phrase) if self.mode == "union" else phrases[category]
            group = groups.setdefault(phrase, Obj(phrase))
            group.polygons += obj.polygons
            group.rle += obj.rle
        return list(groups.values())


def _annotations(
    annotations: list[dict], records: dict[Any, Record], phrases: dict[Any, str], findings: Findings
) -> dict[Any, list[tuple[Any, Obj]]]:
    """Checks the annotations; returns (category id, object) of each image id."""
    by_image: dict[Any, list[tuple[Any, Obj]]] = defaultdict(list)
    for annotation in annotations:
        name = f"annotation {annotation.get('id')!r}"
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        record = records.get(image_id) if isinstance(image_id, int | str) else None
        if record is None:
            findings.add(
                f"{name} points to the unknown image id {image_id!r}",
                "annotations of images that the file lists",
                _EXPORT,
            )
        known = isinstance(category, int | str) and category in phrases
        if not known:
            findings.add(
                f"{name} points to the unknown category id {category!r}",
                "annotations of categories that the file lists",
                _EXPORT,
            )
        if record is None:
            continue
        obj, problems = parse_segmentation(annotation.get("segmentation"), record)
        for problem, region in problems:
            findings.add(
                f"{name} of {record.name}: {problem}",
                *region_advice(problem),
                region_kind(problem),
                record.name,
                region,
            )
        if known:
            by_image[image_id].append((category, obj))
    return by_image


def parse_segmentation(
    segmentation: Any, record: Record
) -> tuple[Obj, list[tuple[str, list[list[float]]]]]:
    """Reads a COCO ``segmentation`` (list of polygons, or an RLE).

    Returns:
        An object without a phrase, and what is wrong with it: texts, each with the polygon that it
        is about, if that can be drawn.
    """
    obj, problems = Obj(""), []
    if isinstance(segmentation, dict):
        rle, problem = parse_rle(segmentation, record.width, record.height)
        obj.rle = [rle] if rle else []
        return obj, [(problem, [])] if problem else []
    if not isinstance(segmentation, list) or not segmentation:
        return obj, [(f"segmentation is {segmentation!r}, it has no polygon", [])]
    for points in segmentation:
        xy, problem = parse_polygon(points, record.width, record.height)
        if xy is None:
            problems.append((problem, [points] if is_drawable(points) else []))
        else:
            obj.polygons.append(xy)
    return obj, problems


def region_kind(problem: str) -> str:
    """Returns the kind (see :class:`Problem`) of what :func:`parse_segmentation` found."""
    if "outside" in problem:
        return "outside"
    if "drawn at" in problem:
        return "label_size"
    return "rle" if "RLE" in problem else "polygon"


def region_advice(problem: str) -> tuple[str, str]:
    """Returns (expected, fix) for what :func:`parse_segmentation` found."""
    if "outside" in problem or "drawn at" in problem:
        return "labels inside their image, at most 1 px over its edge", _DRAW
    if "RLE" in problem:
        return "an RLE of exactly the image's pixels", _EXPORT
    return "polygons [x1, y1, x2, y2, ...] of 3 points or more", _EXPORT


def _lists(data: Any, path: Path) -> tuple[list[dict], list[dict], list[dict]]:
    names = ("images", "annotations", "categories")
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}", _FORM, "correct `ann_file`")
    for name in names:
        entries = data.get(name)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise DataError(f"{path} has no list `{name}` of objects", _FORM, "correct `ann_file`")
        if not entries:
            what = "zero frames: its list" if name == "images" else "nothing labelled: its list"
            raise DataError(
                f"{path} has {what} `{name}` is empty",
                f"at least one entry in `{name}`",
                "export the annotations again, with images, labels and categories",
            )
    return data["images"], data["annotations"], data["categories"]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(
            f"{name}={value!r}{suggest(str(value), known)}",
            f"one of {', '.join(known)}",
            f"correct `{name}` of the data set",
        )
    return value
