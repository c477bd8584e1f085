"""Split files that the readers read, from the data sets of a config or an annotation file.

Annotations of all sources become one pool; image names in it start from one common folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError, listing
from .base import VesselDataset
from .hashes import image_hashes, in_parallel
from .leakage import find_near_pairs
from .near_duplicates import thumbnail
from .records import read_json
from .splits import connected

_LAYOUTS = {
    "CocoVesselDataset": ".json",
    "Sa2VAJsonDataset": ".json",
    "FolderVesselDataset": ".txt",
}


@dataclass
class Frame:
    """A frame of the pool.

    Attributes:
        name: of its image below the common folder, unique.
        vessel_fraction: 0 to 1.
        group: smallest frame name of those that must stay together.
        patient: pseudonym, or None.
    """

    name: str
    vessel_fraction: float
    group: str
    patient: str | None


class Pool:
    """All frames of the data sets of a config.

    Args:
        configs: data set configs of one type, by split.

    Raises:
        ConfigError: several types or folders that cannot be pooled.
        DataError: what the readers find, and frames that are in two of the data sets.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        kinds = {config["type"] for config in configs.values()}
        if len(kinds) != 1 or not kinds <= _LAYOUTS.keys():
            raise ConfigError(
                f"data sets of {listing(sorted(kinds))}",
                f"one type, one of {', '.join(_LAYOUTS)}",
                "choose splits of one type by --split",
            )
        self.kind = kinds.pop()
        self.suffix = _LAYOUTS[self.kind]
        self.configs = {split: dict(config) for split, config in configs.items()}
        for config in self.configs.values():
            # Training and test frames alike; what a split leaves out by config stays out.
            config |= {"test_mode": False, "augment": None}
        self.datasets: list[VesselDataset] = [DATASETS.build(c) for c in self.configs.values()]
        roots = [Path(d.image_root) for d in self.datasets]
        # One folder keeps its names as they are; several start from data_root.
        self.shared = len({root.resolve() for root in roots}) == 1
        self.root = roots[0] if self.shared else self.datasets[0].data_root
        if not self.shared and self.kind == "FolderVesselDataset":
            raise ConfigError(
                f"folders of images {listing(map(str, roots))}",
                "one `image_dir` and one `mask_dir` for all frames",
                "put the frames into one folder, or choose one split by --split",
            )
        names = [name for dataset in self.datasets for name in self.names(dataset)]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(
                f"{len(twice)} frames in two splits of the config: {listing(twice)}",
                "each frame once",
                "choose splits by --split, or correct the annotation files",
            )

    @property
    def image_dir(self) -> str:
        """``image_dir`` of the new splits, below ``data_root``."""
        if self.shared:
            return str(next(iter(self.configs.values()))["image_dir"])
        return "."

    def names(self, dataset: VesselDataset) -> list[str]:
        """Name of each record's image below the common folder."""
        prefix = Path()
        if not self.shared:
            try:
                prefix = dataset.image_root.resolve().relative_to(self.root.resolve())
            except ValueError as error:
                raise ConfigError(
                    f"images in {dataset.image_root}",
                    f"all images below {self.root}",
                    "set `data_root` to a folder that holds all of them",
                ) from error
        return [(PurePosixPath(prefix.as_posix()) / r.name).as_posix() for r in dataset.records]

    def frames(self, unit: str, progress: bool = True) -> list[Frame]:
        """Returns all frames, sorted by name; reads every image and mask once.

        Frames of one patient, equal frames and near-duplicates get one group.

        Args:
            unit: ``patient``, or ``frame`` where every frame is its own patient.
            progress: show bars.

        Raises:
            ConfigError: ``patient`` without patient ids.
            DataError: files that cannot be read.
        """
        rows = [
            (name, dataset, index)
            for dataset in self.datasets
            for index, name in enumerate(self.names(dataset))
        ]
        rows.sort(key=lambda row: row[0])
        raw = [dataset.records[index].patient_raw for _, dataset, index in rows]
        if unit == "patient" and None in raw:
            raise ConfigError(
                f"{raw.count(None)} of {len(raw)} frames without a patient id",
                "patient ids: frames of one patient in two splits make a test look better than it "
                "is",
                "give --patient PATTERN (or `patient` in the config); where the frames really are "
                "of different patients, say so by --unit frame",
            )
        names = [name for name, *_ in rows]
        first: dict[Any, str] = {}
        links = [
            (first.setdefault(patient, name), name)
            for name, patient in zip(names, raw, strict=True)
            if unit == "patient"
        ]
        links += [(names[i], names[j]) for i, j in self._alike(rows, progress)]
        group = connected(names, links)
        fractions = in_parallel(
            lambda k: float(rows[k][1].masks(rows[k][2]).any(axis=0).mean()),
            len(rows),
            "reading labels",
            None,
            progress,
        )
        return [
            Frame(name, fraction, group[name], dataset.patients[index])
            for (name, dataset, index), fraction in zip(rows, fractions, strict=True)
        ]

    def _alike(
        self, rows: Sequence[tuple[str, VesselDataset, int]], progress: bool
    ) -> list[tuple[int, int]]:
        """Pairs of rows whose images are equal or near-duplicates."""

        def column(by: str) -> dict[str, list[str]]:
            return {"all": [image_hashes(d, by, None, progress)[i] for _, d, i in rows]}

        pixels, perceptual = column("pixels"), column("perceptual")
        first: dict[str, int] = {}
        same = [(first.setdefault(text, k), k) for k, text in enumerate(pixels["all"])]

        def small(_: str, k: int) -> Any:
            return thumbnail(rows[k][1].image(rows[k][2]))

        near = find_near_pairs(pixels, perceptual, small, within=True)
        return [*same, *((pair.left[1], pair.right[1]) for pair in near)]

    def content(self, chosen: set[str]) -> bytes:
        """Returns the split file of the frames of these names; the same whatever their order."""
        if self.kind == "FolderVesselDataset":
            return "".join(f"{name}\n" for name in sorted(chosen)).encode("utf-8")
        if self.kind == "Sa2VAJsonDataset":
            entries = [
                {**entry, "image": name}
                for entry, name in self._raw_rows(lambda data: data, "image")
                if name in chosen
            ]
            entries.sort(key=lambda entry: (entry["image"], _canonical(entry)))
            return _json(entries)
        return _json(self._coco(chosen))

    def _raw_rows(self, images: Any, key: str) -> list[tuple[dict[str, Any], str]]:
        """Every image entry of the source files, with its name below the common folder."""
        rows = []
        for config, dataset in zip(self.configs.values(), self.datasets, strict=True):
            new = dict(zip((r.name for r in dataset.records), self.names(dataset), strict=True))
            data = read_json(dataset.resolve(config["ann_file"]), "the annotations")
            # Frames that the config leaves out (limit, unlabelled='drop') have no new name.
            rows += [(e, new[e[key]]) for e in images(data) if e[key] in new]
        return rows

    def _coco(self, chosen: set[str]) -> dict[str, Any]:
        """A COCO file of its own numbering."""
        images: list[tuple[str, dict, list[tuple[dict, str]]]] = []
        categories: dict[str, dict] = {}
        for config, dataset in zip(self.configs.values(), self.datasets, strict=True):
            data = read_json(dataset.resolve(config["ann_file"]), "a COCO instances file")
            new = dict(zip((r.name for r in dataset.records), self.names(dataset), strict=True))
            key_of = {}
            for category in data["categories"]:
                key = _canonical({k: v for k, v in category.items() if k != "id"})
                key_of[category["id"]] = key
                # The order of categories is the order of phrases: keep the numbers of the source.
                categories.setdefault(key, category)
            by_image: dict[Any, list[tuple[dict, str]]] = {}
            for annotation in data["annotations"]:
                row = annotation, key_of[annotation["category_id"]]
                by_image.setdefault(annotation["image_id"], []).append(row)
            images += [
                (new[image["file_name"]], image, by_image.get(image["id"], []))
                for image in data["images"]
                if new.get(image["file_name"]) in chosen
            ]
        ordered = sorted(categories, key=lambda key: (_sortable(categories[key]["id"]), key))
        number = {key: i for i, key in enumerate(ordered, 1)}
        out: dict[str, Any] = {"images": [], "annotations": []}
        for image_id, (name, image, labels) in enumerate(sorted(images, key=_first), 1):
            out["images"].append({**image, "id": image_id, "file_name": name})
            plain = [
                {**a, "image_id": image_id, "category_id": number[key], "id": 0}
                for a, key in labels
            ]
            for annotation in sorted(plain, key=_canonical):
                annotation["id"] = len(out["annotations"]) + 1
                out["annotations"].append(annotation)
        out["categories"] = [{**categories[key], "id": number[key]} for key in ordered]
        return out


def _first(row: tuple[str, Any, Any]) -> str:
    return row[0]


def _sortable(number: int | str) -> tuple[bool, int, str]:
    """Numbers before texts, which do not compare with each other."""
    is_text = isinstance(number, str)
    return (True, 0, number) if is_text else (False, number, "")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode("utf-8")
