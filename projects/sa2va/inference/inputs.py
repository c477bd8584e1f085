"""Images in every form that users have them: files, folders, globs, arrays, Pillow images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.image_io import IMAGE_SUFFIXES, check_intensity, read_image, to_rgb
from ..errors import DataError, listing
from ..evaluation.writer import file_stem

GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """One image that has not been read yet.

    Attributes:
        name: of the file, with the folders below the one that was given; ``image_0003`` for an
            image in memory.
        content: its path, or the image itself.
        intensity: how values deeper than 8 bits become 8 bits (``datasets/image_io.py``).
    """

    name: str
    content: Path | np.ndarray | Image.Image
    intensity: str = "own_range"

    @property
    def path(self) -> Path | None:
        """The file, where it is one."""
        return self.content if isinstance(self.content, Path) else None

    @property
    def stem(self) -> PurePath:
        """The name without its ending: what output files are called."""
        return PurePath(self.name).with_suffix("") if self.path is not None else PurePath(self.name)

    def read(self) -> np.ndarray:
        """uint8 RGB [H, W, 3].

        Raises:
            DataError: it cannot be read.
        """
        if isinstance(self.content, Path):
            return read_image(self.content, self.intensity)
        return to_rgb(self.content, self.intensity, self.name)


def is_single(images: Any) -> bool:
    """Whether ``images`` is one image, and not several."""
    if isinstance(images, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(images))
        return not (os.path.isdir(path) or (GLOB.search(path) and not os.path.exists(path)))
    return isinstance(images, (np.ndarray, Image.Image))


def find_images(images: Any, intensity: str = "own_range") -> Iterator[Source]:
    """The images that ``images`` stands for, in order.

    Args:
        images: a file, a folder (all images in it and below, by name), a glob (``**`` too), an
            array, a Pillow image, or an iterable of these. An array is grey [H, W] or [H, W, 1],
            RGB [H, W, 3] or RGBA [H, W, 4]; a stack of images is given as a list of them.
        intensity: ``own_range`` or ``full_range``: how values deeper than 8 bits become 8 bits.

    Yields:
        Sources; an iterable is consumed as they are asked for.

    Raises:
        DataError: a file or folder that is not there, a folder or glob without images; of a list,
            when its turn comes.
        ConfigError: an unknown ``intensity``.
    """
    check_intensity(intensity)
    if isinstance(images, (str, os.PathLike)):
        yield from _from_path(images, intensity)
    elif isinstance(images, (np.ndarray, Image.Image)):
        yield Source("image_0000", images, intensity)
    elif isinstance(images, Iterable):
        if isinstance(images, Sequence) and images and all(map(_is_file, images)):
            # Named from their common folder on, so that a/1.png and b/1.png stay two.
            paths = [Path(os.path.abspath(os.path.expanduser(os.fspath(one)))) for one in images]
            root = os.path.commonpath([path.parent for path in paths])
            for path in paths:
                yield Source(path.relative_to(root).as_posix(), path, intensity)
            return
        for number, one in enumerate(images):
            if isinstance(one, (str, os.PathLike)):
                yield from _from_path(one, intensity)
            else:
                yield Source(f"image_{number:04d}", one, intensity)
    else:
        raise DataError(
            found=f"a {type(images).__name__} as images",
            expected="a path, a folder, a glob, an array, a Pillow image, or a list of these",
            fix="give one of them",
        )


def list_files(images: str | os.PathLike | Iterable, intensity: str = "own_range") -> list[Source]:
    """As :func:`find_images` of files, all at once, with names that tell their outputs apart.

    Raises:
        DataError: also where two images would write the same output files.
    """
    sources = list(find_images(images, intensity))
    by_output: dict[PurePath, Source] = {}
    for source in sources:
        output = source.stem.with_name(file_stem(source.stem.name))
        other = by_output.setdefault(output, source)
        if other is not source:
            both = f"{other.path or other.name} and {source.path or source.name}"
            raise DataError(
                found=f"{both}: both would be written as {output}.png",
                expected="names that differ before their ending, in letters a-z, digits, . _ or -",
                fix="rename one of them, or predict them into different --out folders",
            )
    return sources


def _from_path(given: str | os.PathLike, intensity: str) -> Iterator[Source]:
    path = Path(os.path.expanduser(os.fspath(given)))
    named = bool(os.fspath(given).strip())  # an empty text is not the current folder
    if path.is_file():
        yield Source(path.name, path, intensity)
        return
    if named and path.is_dir():
        root, found = path, _below(path)
    elif GLOB.search(str(path)):
        root = Path(*_before_glob(path))
        found = (Path(p) for p in glob.iglob(str(path), recursive=True))
    else:
        raise DataError(
            found=f"no file or folder {os.fspath(given)!r}",
            expected="an image file, a folder of images, or a glob such as 'frames/**/*.png'",
            fix="correct the path",
        )
    files = sorted(p for p in found if p.is_file() and not _hidden(p, root))
    paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        others = listing(sorted({p.suffix or p.name for p in files}), 5)
        raise DataError(
            found=f"no image in {path}" + (f" (only {others})" if files else ""),
            expected="files ending in " + ", ".join(IMAGE_SUFFIXES),
            fix="correct the path; convert other formats (DICOM, video) to PNG frames first",
        )
    for file in paths:
        yield Source(file.relative_to(root).as_posix(), file, intensity)


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and below; linked folders too, each once."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(root, file) for file in files)


def _is_file(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike)) and os.path.isfile(os.path.expanduser(image))


def _before_glob(path: Path) -> list[str]:
    parts = list(path.parts)
    first = next(number for number, part in enumerate(parts) if GLOB.search(part))
    return parts[:first]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
