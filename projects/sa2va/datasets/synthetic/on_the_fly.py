"""Synthetic angiograms as a data set whose frames are made when they are asked for."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine.registry import DATASETS

from projects.sa2va.datasets.base import VesselDataset
from projects.sa2va.datasets.hashes import split_hash
from projects.sa2va.datasets.records import Obj, Record
from projects.sa2va.datasets.synthetic.pretraining_frame import (
    PRETRAINING_VERSION,
    Frame,
    render_frame,
)
from projects.sa2va.datasets.synthetic.pretraining_params import PretrainingParams
from projects.sa2va.datasets.synthetic.real_background import BackgroundFrames, RealBackground
from projects.sa2va.errors import ConfigError

# Keeps these frames apart from whatever else is drawn from the same seed.
_STREAM, _GROUND = 0x5F1A, 9
_LEAST_SIZE = 64
# The last frames that were made: an item asks for image and mask one after the other.
_KEPT = 4


@DATASETS.register_module()
class SyntheticVesselDataset(VesselDataset):
    """Angiograms and masks made on the fly; in training every epoch has new ones.

    A frame depends on nothing but (seed, epoch, index), the parameters and the background files.
    In testing, frames are those of epoch 0.

    Args:
        frames: length of an epoch.
        size: pixels per side of the square frames.
        phrase: what is asked.
        params: ranges that frames draw from, see :class:`PretrainingParams`; None: its defaults.
        background: real training frames as grounds, see :class:`RealBackground`; ``patient`` and
            ``intensity`` are of these. None: every scene is drawn, and no file is read.
        **common: see :class:`VesselDataset`.

    Raises:
        ConfigError: counts, sizes or parameters that cannot be.
        DataError: background files that cannot be read.
    """

    CONFIG_SCHEMAS: ClassVar[dict[str, Any]] = {
        "params": PretrainingParams,
        "background": RealBackground,
    }

    def __init__(
        self,
        frames: int,
        size: int = 512,
        phrase: str = "blood vessel",
        params: Mapping[str, Any] | PretrainingParams | None = None,
        background: Mapping[str, Any] | None = None,
        patient: Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        for name, value, least in (("frames", frames, 1), ("size", size, _LEAST_SIZE)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"{name}={value!r}", f"an integer of {least} or more", f"correct `{name}`"
                )
        if patient and not background:
            raise ConfigError(
                "`patient` without `background`",
                "patients of real frames: drawn ones have none",
                "remove `patient`, or add `background`",
            )
        self.count, self.size, self.phrase = frames, size, phrase
        is_built = isinstance(params, PretrainingParams)
        self.params = params if is_built else PretrainingParams.from_dict(dict(params or {}))
        super().__init__(**common)
        self.background: RealBackground | None = None
        self._files: BackgroundFrames | None = None
        if background:
            self.background = RealBackground(**background)
            self._files = self.background.open(
                processor=self.processor,
                data_root=self.data_root,
                intensity=self.intensity,
                patient=patient,
            )
        self._frame = functools.lru_cache(_KEPT)(self._rendered)

    def load_records(self) -> list[Record]:
        """Names the frames; see :class:`VesselDataset`."""
        self.image_root = Path("synthetic")
        names = [f"S{number:07d}.png" for number in range(self.count)]
        objects = [Obj(self.phrase)]
        return [Record(self.image_root / n, n, self.size, self.size, objects) for n in names]

    def on_disk(self) -> VesselDataset | None:
        """The real frames that serve as grounds; None without them."""
        return self._files

    def identity(self) -> str:
        """Sha256 over everything that decides the frames: version, parameters, background files."""
        wordings = list(self.phrases)
        parts = {
            "generator_version": PRETRAINING_VERSION,
            "frames": [self.count, len(self)],
            "names": hashlib.sha256("\n".join(r.name for r in self.records).encode()).hexdigest(),
            "size": self.size,
            "seed": self.seed,
            "phrases": wordings,
            "params": self.params.to_dict(),
        }
        if self.background is not None and self._files is not None:
            parts["background"] = [self.background.share, split_hash(self._files)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def image(self, index: int, epoch: int = 0) -> np.ndarray:
        """The picture of a frame, uint8 RGB [size, size, 3]."""
        return np.repeat(self._frame(epoch, self._number(index)).image[..., None], 3, axis=2)

    def masks(self, index: int, objects: Sequence[Obj] | None = None, epoch: int = 0) -> np.ndarray:
        """The masks of a frame, uint8 [K, size, size]; every object is the vessels."""
        count = len(self.records[index].objects if objects is None else objects)
        mask = self._frame(epoch, self._number(index)).mask
        return np.repeat(mask[None], count, axis=0)

    def _number(self, index: int) -> int:
        # By name and not by position: `indices` must not change what a frame looks like.
        return int(self.records[index].name[1:-4])

    def _rendered(self, epoch: int, number: int) -> Frame:
        key = [_STREAM, self.seed, epoch, number]
        ground = None
        if self.background is not None:
            ground = self.background.draw(np.random.default_rng([*key, _GROUND]), self.size)
        return render_frame(key, self.size, self.params, ground)

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept frames, so that loaders can start workers by spawning."""
        return {name: value for name, value in self.__dict__.items() if name != "_frame"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frame = functools.lru_cache(_KEPT)(self._rendered)
