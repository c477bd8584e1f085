"""Folders of images and masks of the same stem, such as DRIVE, CHASE_DB1 or own exports."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError, listing
from .base import VesselDataset
from .image_io import IMAGE_SUFFIXES, read_sizes
from .records import Findings, Obj, Record, mask_size_error


@DATASETS.register_module()
class FolderVesselDataset(VesselDataset):
    """Images and masks paired by stem, sorted by name; any non-zero mask pixel is vessel.

    Args:
        image_dir: folder of the images, below ``data_root``; any image suffix.
        mask_dir: folder of the masks, below ``data_root``; any image suffix but JPEG.
        mask_suffix: what a mask's stem has after its image's stem (``_1stHO`` in CHASE_DB1 as it
            is published). Other files of ``mask_dir`` are left alone, so that masks of several
            observers, or the images, may lie in the same folder.
        image_glob: which files of ``image_dir`` are images, by file name (``*.jpg`` where masks
            of other observers lie beside them).
        phrase: what is asked.
        frames_file: text file below ``data_root`` with one image a line, named below ``image_dir``,
            as tools/make_splits.py writes it: only these are frames. None: all images.
        recursive: also look into folders below; pairs have the same path below both folders.
        **common: see :class:`VesselDataset`.

    Raises:
        ConfigError: one folder for images and masks without ``mask_suffix``.
        DataError: everything wrong at once: missing folder, zero frames, images without mask,
            masks without image, two files of the same stem, unreadable files, masks of another
            size than their images.
    """

    def __init__(
        self,
        image_dir: str | Path,
        mask_dir: str | Path,
        mask_suffix: str = "",
        image_glob: str = "*",
        phrase: str = "blood vessel",
        frames_file: str | Path | None = None,
        recursive: bool = False,
        **common: Any,
    ) -> None:
        self.image_dir, self.mask_dir = Path(image_dir), Path(mask_dir)
        self.mask_suffix, self.image_glob = mask_suffix, image_glob
        self.phrase, self.recursive = phrase, recursive
        self.frames_file = None if frames_file is None else Path(frames_file)
        super().__init__(**common)

    def load_records(self) -> list[Record]:
        """Pairs the files; see :class:`VesselDataset`."""
        self.image_root, mask_root = self.resolve(self.image_dir), self.resolve(self.mask_dir)
        shared = self.image_root.resolve() == mask_root.resolve()
        if shared and not self.mask_suffix:
            raise ConfigError(
                f"{self.image_root} is image_dir and mask_dir",
                "two folders, or a `mask_suffix` that tells masks from images",
                "set `mask_dir` or `mask_suffix`",
            )
        findings = Findings(self.image_root)
        images = self._files(self.image_root, self.image_glob, "", findings)
        masks = self._files(mask_root, "*", self.mask_suffix, findings)
        if shared:
            images = {s: p for s, p in images.items() if not s.endswith(self.mask_suffix)}
        if self.frames_file is not None:
            images = self._listed(images, self.resolve(self.frames_file), findings)
            masks = {stem: path for stem, path in masks.items() if stem in images}
        without_mask = sorted(images.keys() - masks.keys())
        without_image = sorted(masks.keys() - images.keys())
        if without_mask:
            findings.add(
                f"{len(without_mask)} images without a mask: {listing(without_mask)}",
                f"a mask <stem>{self.mask_suffix}.* in {mask_root} for every image",
                "add the masks, remove the images, or correct `mask_suffix`",
                "unpaired",
            )
        if without_image:
            findings.add(
                f"{len(without_image)} masks without an image: {listing(without_image)}",
                f"an image <stem>.* in {self.image_root} for every mask",
                "add the images or remove the masks",
                "unpaired",
            )
        stems = sorted(images.keys() & masks.keys())
        sizes = read_sizes([images[s] for s in stems]), read_sizes([masks[s] for s in stems])
        records = []
        for stem, size, mask_size in zip(stems, *sizes, strict=True):
            name = images[stem].relative_to(self.image_root).as_posix()
            for result in (size, mask_size):
                if isinstance(result, DataError):
                    findings.add_error(result, image=name)
            if isinstance(size, DataError) or isinstance(mask_size, DataError):
                continue
            if size != mask_size:
                findings.add_error(
                    mask_size_error(masks[stem], mask_size, size), "label_size", name
                )
            objects = [Obj(self.phrase, mask_path=masks[stem])]
            records.append(Record(images[stem], name, *size, objects))
        findings.raise_if_any()
        return records

    def _listed(self, images: dict[str, Path], path: Path, findings: Findings) -> dict[str, Path]:
        """The images that the file at ``path`` lists."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read: {error}",
                "a text file with the name of one image a line",
                "correct `frames_file`, or write it by tools/make_splits.py",
            ) from error
        names = {line.strip() for line in lines} - {""}
        by_name = {p.relative_to(self.image_root).as_posix(): s for s, p in images.items()}
        unknown = sorted(names - by_name.keys())
        if unknown:
            findings.add(
                f"{path} lists {len(unknown)} images that are not there: {listing(unknown)}",
                f"names of images below {self.image_root}",
                "correct the file, `image_dir` or `image_glob`",
                "unpaired",
            )
        return {by_name[name]: images[by_name[name]] for name in names & by_name.keys()}

    def _files(self, folder: Path, glob: str, suffix: str, findings: Findings) -> dict[str, Path]:
        """Image files by path below ``folder`` without file suffix and without ``suffix``."""
        if not folder.is_dir():
            raise DataError(
                f"{folder} is no folder",
                "a folder of images",
                "correct `data_root`, `image_dir` or `mask_dir` in the config",
            )
        by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.rglob(glob) if self.recursive else folder.glob(glob)):
            # Names with a leading dot are what file systems leave behind (._a.png, .thumbs).
            hidden = path.name.startswith(".")
            if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
                continue
            if path.stem.endswith(suffix):
                stem = path.stem.removesuffix(suffix)
                by_stem[(path.parent.relative_to(folder) / stem).as_posix()].append(path)
        for stem, paths in by_stem.items():
            if len(paths) > 1:
                findings.add(
                    f"{len(paths)} files of the stem {stem!r} in {folder}: "
                    f"{listing(path.name for path in paths)}",
                    "one image and one mask for every stem",
                    "remove or rename all but one of them",
                    "repeated_entry",
                )
        if not by_stem:
            below = [path.name for path in folder.iterdir() if path.is_dir()]
            hint = f" (it holds the folders {listing(sorted(below))})" if below else ""
            wanted = f" with stems ending in {suffix!r}" if suffix else ""
            raise DataError(
                f"zero frames: no image files{wanted} in {folder}{hint}",
                "at least one image and its mask",
                "point `image_dir` and `mask_dir` at the folders of the files, "
                "correct `image_glob` or `mask_suffix`, or set recursive=True",
            )
        return {stem: paths[0] for stem, paths in by_stem.items()}
