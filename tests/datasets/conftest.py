"""Small data sets on disk, and a processor small enough to be built for every test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROCESSOR = {
    "tokenizer": {"type": "byte_level"},
    "tile_size": 28,
    "tokens_per_tile": 1,
    "max_tiles": 1,
    "image_size": 64,
}


@pytest.fixture(scope="session")
def processor():
    """A built processor, shared: it holds settings only."""
    from projects.sa2va.processing.processor import Sa2VAProcessor

    return Sa2VAProcessor(**PROCESSOR)


@pytest.fixture(scope="session")
def processor_cfg() -> dict:
    """The same as a config, the way a config file gives it."""
    return PROCESSOR


def square(x: float, y: float, side: float) -> list[float]:
    """A square polygon with its corner at (x, y)."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


class CocoFolder:
    """A COCO data set of ``count`` frames, 40 x 30 px, two overlapping squares in each."""

    def __init__(self, root: Path, count: int = 3, seed: int = 0) -> None:
        self.root = root
        (root / "images").mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        self.data: dict = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": 1, "name": "1", "description": "left main artery"},
                {"id": 2, "name": "side branch"},
            ],
        }
        for i in range(count):
            name = f"P{i // 2:02d}_{i}.png"
            Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(root / "images" / name)
            self.data["images"].append({"id": i, "file_name": name, "width": 40, "height": 30})
            for k, region in enumerate((square(2, 2, 10), square(7, 7, 10))):
                self.data["annotations"].append(
                    {
                        "id": 2 * i + k,
                        "image_id": i,
                        "category_id": 1 + k,
                        "iscrowd": 0,
                        "segmentation": [region],
                    }
                )

    def write(self) -> Path:
        path = self.root / "ann.json"
        path.write_text(json.dumps(self.data))
        return path


@pytest.fixture
def coco_folder(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path / "coco")


@pytest.fixture
def make_coco(tmp_path, processor):
    """Writes a COCO folder of a name of its own and builds its data set."""
    from projects.sa2va.datasets import CocoVesselDataset

    def make(name: str, count: int = 3, seed: int = 0, **kwargs):
        folder = CocoFolder(tmp_path / name, count, seed)
        folder.write()
        defaults = {"processor": processor, "data_root": folder.root}
        return CocoVesselDataset("ann.json", "images", **(defaults | kwargs))

    return make


@pytest.fixture
def load_coco(coco_folder, processor):
    """Writes the (changed) annotations and builds the data set."""
    from projects.sa2va.datasets import CocoVesselDataset

    def load(**kwargs):
        coco_folder.write()
        defaults = {"processor": processor, "data_root": coco_folder.root}
        return CocoVesselDataset("ann.json", "images", **(defaults | kwargs))

    return load


@pytest.fixture
def truncate():
    """Cuts a file to its first half, as an interrupted copy leaves it."""

    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return cut
