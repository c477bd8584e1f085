"""The reference's fine-tune format (bytedance/Sa2VA): ``annotations.json``.

A list of ``{"image": file, "mask": [...], "text": [...]}``; object k has the phrase ``text[k]`` and
the region ``mask[k]``, a list of polygons [x1, y1, ...] (united) or a COCO RLE; an empty list says
that the phrase names nothing in this image. Beside it, language-only entries
``{"image": file, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``
(LLaVA's form), whose answers hold no [SEG].
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from ..errors import DataError
from .base import VesselDataset
from .coco import parse_segmentation, region_advice, region_kind
from .image_io import read_sizes
from .records import Findings, Obj, Record, read_json

_FORM = 'a list of {"image": file, "mask": [polygons per object], "text": [phrase per object]}'
_ROLES = ("human", "gpt")


@DATASETS.register_module()
class Sa2VAJsonDataset(VesselDataset):
    """Frames of a fine-tune file of the reference, in the file's order.

    Sizes come from the image files, because the format has none.

    Args:
        ann_file: the JSON, below ``data_root``.
        image_dir: folder that ``image`` of the entries starts from, below ``data_root``.
        **common: see :class:`VesselDataset`.

    Raises:
        DataError: everything wrong in the file at once: not of this form, no entries, masks and
            texts that do not pair up, empty phrases, images listed twice, missing images,
            polygons with fewer than 3 points or outside the image, conversations that cannot be
            trained on.
    """

    def __init__(self, ann_file: str | Path, image_dir: str | Path, **common: Any) -> None:
        self.ann_file, self.image_dir = Path(ann_file), Path(image_dir)
        super().__init__(**common)

    def load_records(self) -> list[Record]:
        """Reads the file; see :class:`VesselDataset`."""
        ann_file, self.image_root = self.resolve(self.ann_file), self.resolve(self.image_dir)
        entries = read_json(ann_file, _FORM)
        if not isinstance(entries, list):
            raise DataError(
                f"{ann_file} holds a {type(entries).__name__}", _FORM, "correct `ann_file`"
            )
        if not entries:
            raise DataError(
                f"{ann_file} has zero frames: its list is empty",
                "at least one entry",
                "write the annotations again",
            )
        findings = Findings(ann_file)
        good = _well_formed(entries, findings)
        segmented = Counter(e["image"] for _, e in good if "conversations" not in e)
        for image, count in segmented.items():
            if count > 1:
                findings.add(
                    f"duplicate image {image!r} ({count} entries)",
                    "one entry an image with all of its objects",
                    "merge the masks and texts of these entries",
                    "repeated_entry",
                    image,
                )
        paths = [self.image_root / entry["image"] for _, entry in good]
        records = []
        for (where, entry), path, size in zip(good, paths, read_sizes(paths), strict=True):
            if isinstance(size, DataError):
                findings.add_error(size, image=entry["image"])
                continue
            record = Record(path, entry["image"], *size)
            if "conversations" in entry:
                record.turns = self._turns(entry["conversations"], where, findings)
            else:
                record.objects = _objects(entry, record, where, findings)
            records.append(record)
        findings.raise_if_any()
        return records

    def _turns(self, turns: Any, where: str, findings: Findings) -> list[tuple[str, str]]:
        """Question and answer pairs, tried on the processor; problems go to ``findings``."""
        expected = "human and gpt in turns, human first, every value a text"
        texts = []
        for number, turn in enumerate(turns if isinstance(turns, list) else []):
            known = isinstance(turn, dict) and turn.get("from") == _ROLES[number % 2]
            if not known or not isinstance(turn.get("value"), str):
                texts = []
                break
            # LLaVA marks the image's place; here the template puts it into the first turn.
            texts.append(turn["value"].replace("<image>", "").strip())
        if not texts or len(texts) % 2:
            findings.add(f"{where}: conversations out of form", expected, "correct this entry")
            return []
        if any("[SEG]" in text for text in texts):
            findings.add(
                f"{where}: [SEG] in a conversation without masks",
                "[SEG] only where a mask belongs to it",
                "write the entry with mask and text, or take [SEG] out",
            )
            return []
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        try:
            self.processor.conversation(pairs, 1)
        except DataError as error:
            findings.add(f"{where}: {error.found}", error.expected, error.fix)
        return pairs


def _well_formed(entries: list[Any], findings: Findings) -> list[tuple[str, dict]]:
    """Returns (how messages name it, entry) of the entries that can be read further."""
    good = []
    for number, entry in enumerate(entries):
        where = f"entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            findings.add(f"{where} has no `image`", _FORM, "correct this entry")
            continue
        where = f"entry {number} ({entry['image']})"
        masks, texts = entry.get("mask"), entry.get("text")
        if "conversations" in entry:
            if masks or texts:
                findings.add(
                    f"{where} has conversations and masks",
                    "either mask and text, or conversations",
                    "split it into two entries",
                )
                continue
        elif not isinstance(masks, list) or not isinstance(texts, list):
            findings.add(
                f"{where} without the lists `mask` and `text`", _FORM, "correct this entry"
            )
            continue
        elif len(masks) != len(texts) or not masks:
            findings.add(
                f"{where} has {len(masks)} masks and {len(texts)} texts",
                "as many masks as texts, at least one of each",
                "correct this entry",
            )
            continue
        good.append((where, entry))
    return good


def _objects(entry: dict, record: Record, where: str, findings: Findings) -> list[Obj]:
    objects = []
    for number, (mask, text) in enumerate(zip(entry["mask"], entry["text"], strict=True)):
        name = f"{where}, object {number}"
        if not isinstance(text, str) or not text.strip():
            findings.add(f"{name}: empty phrase {text!r}", "a text", "fill in `text`")
            continue
        # An empty list is an object that is not in the image; the reference reads it so too.
        obj, problems = (Obj(""), []) if mask == [] else parse_segmentation(mask, record)
        for problem, region in problems:
            findings.add(
                f"{name}: {problem}",
                *region_advice(problem),
                region_kind(problem),
                record.name,
                region,
            )
        obj.phrase = text
        objects.append(obj)
    return objects
