"""A tiny experiment to break, and the ways in which users' data are broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tiny_experiment import write_experiment

FRAMES = (4, 2, 2)


def copy_experiment(rendered: Path, folder: Path, **overrides: Any) -> Path:
    """Writes an experiment of ``FRAMES`` into ``folder`` from frames that are rendered already."""
    shutil.copytree(rendered / "data", folder / "data")
    return write_experiment(folder, frames=FRAMES, **overrides)


def edit_annotations(folder: Path, split: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Applies ``edit`` to the COCO file of a split."""
    path = folder / "data" / split / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def images(folder: Path, split: str) -> list[Path]:
    """The image files of a split."""
    return sorted((folder / "data" / split / "images").iterdir())


def _add_copy(folder: Path, split: str, source: Path, name: str) -> None:
    """Lists ``source`` in ``split`` once more, under ``name``, without annotations."""
    shutil.copy(source, folder / "data" / split / "images" / name)
    with Image.open(source) as image:
        width, height = image.size
    entry = {"id": 900, "file_name": name, "width": width, "height": height}
    edit_annotations(folder, split, lambda data: data["images"].append(entry))


def same_image(folder: Path) -> None:
    """The first test image is a training image, under another name and patient."""
    _add_copy(folder, "train", images(folder, "test")[0], "P0900_F01.png")


def same_patient(folder: Path) -> None:
    """A training frame has the patient of the test frames."""
    patient = images(folder, "test")[0].name.split("_")[0]
    source = images(folder, "train")[0]
    with Image.open(source) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "flipped.png")
    _add_copy(folder, "train", folder / "flipped.png", f"{patient}_F77.png")


def zero_frames(folder: Path) -> None:
    """The list of training images is empty."""
    edit_annotations(folder, "train", lambda data: data.update(images=[]))


def empty_annotations(folder: Path) -> None:
    """The list of training annotations is empty."""
    edit_annotations(folder, "train", lambda data: data.update(annotations=[]))


def missing_image(folder: Path) -> None:
    """A test image is gone."""
    images(folder, "test")[0].unlink()


def truncated_image(folder: Path) -> None:
    """The last training image was copied in part: its header can be read."""
    path = images(folder, "train")[-1]
    path.write_bytes(path.read_bytes()[:-200])


def resized_image(folder: Path) -> None:
    """A training image is not of the size that it was annotated at."""
    path = images(folder, "train")[0]
    with Image.open(path) as image:
        image.resize((40, 30)).save(path)


def duplicate_ids(folder: Path) -> None:
    """Two test images have one id."""
    edit_annotations(folder, "test", lambda d: d["images"][1].update(id=d["images"][0]["id"]))


def two_points(folder: Path) -> None:
    """A polygon of two points."""
    edit_annotations(
        folder, "train", lambda d: d["annotations"][0].update(segmentation=[[1, 1, 9, 9]])
    )


def outside(folder: Path) -> None:
    """A polygon drawn on a frame of 512 px."""
    region = [[400, 400, 500, 400, 500, 500]]
    edit_annotations(folder, "train", lambda d: d["annotations"][0].update(segmentation=region))


def no_json(folder: Path) -> None:
    """The validation annotations are cut short."""
    path = folder / "data" / "val" / "annotations" / "val.json"
    path.write_text(path.read_text()[:100])


# way to break -> (whether a test refuses it too, what the message says)
WAYS: dict[Callable[[Path], None], tuple[bool, tuple[str, ...]]] = {
    same_image: (True, ("1 images in two splits", "P0900_F01.png", "every image in one split")),
    same_patient: (True, ("1 patients in two splits", "split by patient")),
    zero_frames: (False, ("train.json", "zero frames")),
    empty_annotations: (False, ("train.json", "nothing labelled")),
    missing_image: (True, ("test/images",)),
    truncated_image: (False, ("train/images", ".png")),
    resized_image: (False, ("40 x 30 px", "64 x 64 px")),
    duplicate_ids: (True, ("duplicate image id",)),
    two_points: (False, ("polygon has 2 points, fewer than 3", "annotation 1 of")),
    outside: (False, ("polygon outside the image", "x 400..500", "64 x 64 px")),
    no_json: (False, ("val.json cannot be read",)),
}
