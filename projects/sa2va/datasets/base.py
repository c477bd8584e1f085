"""The one base of all data sets: records of a reader become items for training or testing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError, listing
from ..processing.phrases import repeated
from ..processing.processor import Sa2VAProcessor
from .arguments import at_least_1, chosen_indices, is_whole, spacing_mm
from .augment import build_augment
from .image_io import check_intensity, read_image
from .patients import PatientIds, pseudonym, stem_names
from .records import Findings, Obj, Record, rasterise
from .skeletons import thick_skeletons

# Keep random choices apart: switching augmentation on must not change which phrases are drawn.
_PHRASE_STREAM, _AUGMENT_STREAM = 0x9A5E, 0xA06E

Question = list[tuple[str, Obj | None]]
"""The phrases of one question with what each means; None for one that is not in the image."""


class VesselDataset(Dataset, ABC):
    """Images, phrases and masks as the model reads them; a reader only writes ``load_records``.

    Training is indexed by virtual indices ``epoch * len(self) + index`` (see
    :class:`~projects.sa2va.datasets.sampler.EpochSampler`): what is drawn for an item depends on
    nothing but (seed, epoch, index), so worker count, rank and resuming change nothing. A sample
    that cannot be read is an error that names it; it is never replaced by another one.

    Args:
        processor: keyword arguments of :class:`Sa2VAProcessor`, or one that is built.
        data_root: folder that relative paths start from.
        test_mode: items for testing (prompts and truth apart) instead of training.
        phrases: other wordings of ``phrase`` of the reader; training draws one of them and
            ``phrase``, testing asks ``phrase`` itself.
        augment: see :class:`~projects.sa2va.datasets.augment.Augment`; training only.
        patient: see :mod:`~projects.sa2va.datasets.patients`; None: frames have no patient.
        max_phrases_per_sample: at most this many objects of an image make up one training
            conversation, drawn anew every epoch; None: all of them.
        intensity: ``own_range`` or ``full_range`` for images deeper than 8 bits.
        indices: only these records, in this order.
        limit: only the first ``limit`` records (after ``indices``).
        skeletons: training items hold thick skeletons of their masks, for the skeleton recall loss
            (``model.mask_loss.skeleton_recall_weight``).
        spacing: mm from one pixel to the next (or of rows, columns), where all frames share it;
            None: unknown, and no distance is given in mm.
        seed: of augmentation and drawn phrases.

    Attributes:
        records: list of :class:`Record`, in the order of the indices.
        frame_ids: output name of each record, unique in the data set, without raw patient ids
            where ``patient`` is set.
        patients: pseudonym of each record, or None.
        pseudonym_check: equal for data sets whose pseudonyms were made with the same key; None
            without ``patient``.

    Raises:
        ConfigError: an argument that cannot be.
        DataError: zero frames, frames without patient, empty phrases, and what the reader finds.
    """

    phrase: str | None = None
    """The phrase that ``phrases`` are other wordings of; set by readers with a single phrase."""

    def __init__(
        self,
        processor: Mapping[str, Any] | Sa2VAProcessor,
        data_root: str | Path = "",
        test_mode: bool = False,
        phrases: Sequence[str] | None = None,
        augment: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        patient: Mapping[str, Any] | None = None,
        max_phrases_per_sample: int | None = 5,
        intensity: str = "own_range",
        skeletons: bool = False,
        indices: Sequence[int] | None = None,
        limit: int | None = None,
        spacing: float | Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self.data_root = Path(data_root or "").expanduser()
        self.test_mode = test_mode
        self.intensity = check_intensity(intensity)
        self.skeletons = skeletons
        self.max_phrases_per_sample = at_least_1("max_phrases_per_sample", max_phrases_per_sample)
        at_least_1("limit", limit)
        self.spacing = spacing_mm(spacing)
        if not is_whole(seed) or seed < 0:
            raise ConfigError(f"seed={seed!r}", "an integer of 0 or more", "set `seed` to one")
        self.seed = seed
        self.augment = build_augment(augment)
        if test_mode and self.augment:
            raise ConfigError(
                "augment in a data set with test_mode=True",
                "test frames as they are",
                "remove `augment` from the test and validation data sets",
            )
        is_built = isinstance(processor, Sa2VAProcessor)
        self.processor = processor if is_built else Sa2VAProcessor(**processor)
        self.phrases = self._wordings(phrases)
        ids = PatientIds(patient, self.data_root) if patient else None
        self.pseudonym_check = pseudonym("", ids.key) if ids else None

        self.image_root = self.data_root
        self.image_hashes: dict[str, list[str]] = {}
        """Filled by :mod:`~projects.sa2va.datasets.integrity`: they are slow to make."""
        records = self.load_records()
        if not records:
            raise _zero_frames(self.image_root)
        # Named before any are left out: a frame keeps its name whatever `limit` is.
        names = [record.name for record in records]
        raw_ids = ids.raw_ids(names) if ids else [None] * len(names)
        for record, raw in zip(records, raw_ids, strict=True):
            record.patient_raw = raw
        patients = ids.pseudonyms(raw_ids) if ids else raw_ids
        frames = ids.frame_names(names, raw_ids) if ids else stem_names(names)

        self._frames_of_split = len(records)
        chosen = chosen_indices(len(records), indices, limit)
        if not chosen:
            raise _zero_frames(self.image_root)
        self.records = [records[i] for i in chosen]
        self.patients: list[str | None] = [patients[i] for i in chosen]
        self.frame_ids = [frames[i] for i in chosen]
        self._check_records()

    @abstractmethod
    def load_records(self) -> list[Record]:
        """Reads and validates the annotations; sets ``image_root``, the folder of all names."""

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the items of epoch 0, once (indices go on without end, so Python needs this)."""
        return (self[index] for index in range(len(self)))

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's loops hand to the evaluator; nothing in it can name a patient."""
        phrases = sorted({obj.phrase for record in self.records for obj in record.objects})
        return {
            "dataset": type(self).__name__,
            "frames": len(self),
            "frames_of_split": self._frames_of_split,
            "patients": len({name for name in self.patients if name is not None}),
            "phrases": phrases,
        }

    def __getitem__(self, virtual_index: int) -> dict[str, Any]:
        """Builds one item.

        Args:
            virtual_index: ``epoch * len(self) + index`` in training, the index itself in testing.

        Returns:
            Both: pixel_values [n, 3, T, T] and grounding_pixels [3, S, S], float32 in testing and
            uint8 in training, where the model normalises them (a quarter of the bytes); ``meta``
            (index, frame, patient, phrases, image_path, height, width, spacing). Training besides:
            input_ids and labels int64 [L], pad_id, masks uint8 [K, H, W] (K may be 0), and
            ``skeletons`` of the same shape where they are asked for. Testing
            besides: prompts (K times int64 [L]), size (H, W), truth uint8 [K, H, W]. With
            ``processor.image_only`` ``phrases`` (K texts) takes the place of tiles and tokens.

        Raises:
            IndexError: negative, or past the end in test mode.
            DataError: the image or a mask cannot be read or has another size than written.
        """
        virtual_index = int(virtual_index)
        if virtual_index < 0 or (self.test_mode and virtual_index >= len(self)):
            raise IndexError(f"index {virtual_index} of a data set of {len(self)} frames")
        epoch, index = divmod(virtual_index, len(self))
        record = self.records[index]
        image = self.image(index, epoch)
        if self.test_mode:
            return self._test_item(index, image, record.objects)
        return self._train_item(index, image, epoch)

    def on_disk(self) -> VesselDataset | None:
        """The data set whose files the frames come from, for checks that read all files.

        Itself, where a frame is a file; None where frames are made without any file.
        """
        return self

    def identity(self) -> str | None:
        """What stands for the frames where files do not; None: files and labels do."""
        return None

    def image(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns the image of a record, uint8 RGB [H, W, 3], at its original size.

        Args:
            index: of the record.
            epoch: for data sets that make new frames every epoch; files are always the same.

        Raises:
            DataError: it cannot be read, or has another size than the record says.
        """
        record = self.records[index]
        image = read_image(record.image_path, self.intensity)
        height, width = image.shape[:2]
        if (width, height) != (record.width, record.height):
            raise DataError(
                f"{record.image_path} is {width} x {height} px now, "
                f"it was {record.width} x {record.height} px when the data set was opened",
                "files that do not change during a run",
                "start again after the files are complete",
            )
        return image

    def masks(self, index: int, objects: Sequence[Obj] | None = None, epoch: int = 0) -> np.ndarray:
        """Returns the masks of a record's objects (or of some of them), uint8 [K, H, W].

        ``epoch`` is as in :meth:`image`.
        """
        record = self.records[index]
        objects = record.objects if objects is None else objects
        masks = [rasterise(obj, record.height, record.width) for obj in objects]
        return np.stack(masks) if masks else np.zeros((0, record.height, record.width), np.uint8)

    def _test_item(self, index: int, image: np.ndarray, objects: list[Obj]) -> dict[str, Any]:
        phrases = [obj.phrase for obj in objects]
        return {
            **self.processor.prediction_item(image, phrases),
            "truth": torch.from_numpy(self.masks(index)),
            "meta": self._meta(index, phrases, image),
        }

    def _train_item(self, index: int, image: np.ndarray, epoch: int) -> dict[str, Any]:
        record = self.records[index]
        rng = np.random.default_rng([_PHRASE_STREAM, self.seed, epoch, index])
        asked = self.draw_questions(record, rng)
        labelled = [(phrase, obj) for one in asked for phrase, obj in one if obj is not None]
        phrases = [phrase for phrase, _ in labelled]
        masks = self.masks(index, [obj for _, obj in labelled], epoch)
        if self.augment:
            rng = np.random.default_rng([_AUGMENT_STREAM, self.seed, epoch, index])
            image, masks = self.augment(image, masks, rng)
        item = {
            **self.processor.pixels(image),
            "masks": torch.from_numpy(masks),
            "meta": self._meta(index, phrases, image),
        }
        if self.skeletons:
            item["skeletons"] = torch.from_numpy(thick_skeletons(masks))
        if self.processor.image_only:
            return {**item, "phrases": phrases}
        turns = [
            self.processor.turn([p for p, _ in one], [obj is not None for _, obj in one])
            for one in asked
        ]
        tiles = len(item["pixel_values"])
        input_ids, labels = self.processor.conversation(turns or record.turns, tiles)
        return {
            **item,
            "input_ids": input_ids,
            "labels": labels,
            "pad_id": self.processor.pad_token_id,
        }

    def _meta(self, index: int, phrases: list[str], image: np.ndarray) -> dict[str, Any]:
        return {
            "index": index,
            "frame": self.frame_ids[index],
            "patient": self.patients[index],
            "phrases": phrases,
            "image_path": str(self.records[index].image_path),
            "height": image.shape[0],
            "width": image.shape[1],
            "spacing": self.spacing,
        }

    def draw_questions(self, record: Record, rng: np.random.Generator) -> list[Question]:
        """What one training conversation asks: here each of the drawn objects by itself.

        Args:
            record: of the image.
            rng: of nothing but (seed, epoch, index).
        """
        return [[(self._wording(obj.phrase, rng), obj)] for obj in self._drawn(record.objects, rng)]

    def labelled(self, index: int) -> list[Obj]:
        """The objects of a record that were drawn by hand, each region once, for checks of them."""
        return self.records[index].objects

    def _drawn(self, objects: list[Obj], rng: np.random.Generator) -> list[Obj]:
        most = self.max_phrases_per_sample
        if most is None or len(objects) <= most:
            return objects
        chosen = rng.choice(len(objects), most, replace=False)
        return [objects[i] for i in sorted(chosen.tolist())]

    def _wording(self, phrase: str, rng: np.random.Generator) -> str:
        if not self.phrases or phrase != self.phrase:
            return phrase
        return self.phrases[int(rng.integers(len(self.phrases)))]

    def _wordings(self, phrases: Sequence[str] | None) -> list[str]:
        """All wordings to draw from, the main one first; checked like any phrase."""
        if isinstance(phrases, str) or (phrases and self.phrase is None):
            raise ConfigError(
                f"phrases={phrases!r}",
                "a list of other wordings for a data set with a single `phrase`",
                "write phrases=['...'], only with a reader and mode that use `phrase`",
            )
        wordings = list(dict.fromkeys([self.phrase, *(phrases or ())])) if self.phrase else []
        if self.phrase is not None:
            for text in (self.phrase, *(phrases or ())):
                self._check_phrase(text, "the config of the data set", ConfigError)
        return wordings

    def _check_phrase(self, text: Any, where: str, error_type: type = DataError) -> None:
        try:
            self.processor.question_for(text)
        except DataError as error:
            found = f"{where}: {error.found}"
            raise error_type(found, error.expected, error.fix) from error

    def _check_records(self) -> None:
        findings = Findings(self.image_root)
        good: set[str] = set()
        for record in self.records:
            if self.test_mode and not record.objects:
                findings.add(
                    f"{record.name} has nothing to segment",
                    "at least one phrase for every test frame",
                    "take language-only samples out of the test and validation data",
                )
            phrases = [obj.phrase for obj in record.objects]
            if self.test_mode and (twice := repeated(phrases)):
                findings.add(
                    f"{record.name} has several masks for one phrase: {listing(twice, 3)}",
                    "one mask for each phrase of a test frame: the model gives one map a phrase",
                    "unite them (mode='union' or 'category' for COCO), or give each its own phrase",
                )
            for obj in record.objects:
                if obj.phrase in good:
                    continue
                try:
                    self._check_phrase(obj.phrase, record.name)
                    good.add(obj.phrase)
                except DataError as error:
                    findings.add_error(error)
        if self.test_mode and (twice := repeated(sorted(good))):
            findings.add(
                f"one phrase in several spellings: {listing(twice, 3)}",
                "one spelling of a phrase in all test frames: results are counted by phrase",
                "write it alike in the annotations; case and white space make no other phrase",
            )
        findings.raise_if_any()

    def resolve(self, path: str | Path) -> Path:
        """Returns ``path`` below ``data_root`` (absolute paths stay as they are).

        Raises:
            DataError: ``data_root`` is given and no folder.
        """
        if str(self.data_root) not in ("", ".") and not self.data_root.is_dir():
            raise DataError(
                f"data_root {self.data_root} does not exist",
                "the folder that holds the data sets",
                "set `data_root` in the config, or by --cfg-options data_root=FOLDER",
            )
        return self.data_root / Path(path).expanduser()


def _zero_frames(folder: Path) -> DataError:
    return DataError(
        f"zero frames in {folder}",
        "at least one frame with its annotation",
        "check `data_root`, the other paths and `indices` of this data set in the config",
    )
