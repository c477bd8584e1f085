"""Scoring processes beside the test loop: the same results, in order, and no silent loss."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest

from projects.sa2va.errors import SetupError
from projects.sa2va.evaluation.metrics import Scorer
from projects.sa2va.evaluation.rows import FrameResult
from projects.sa2va.evaluation.scoring import (
    WORTH_A_POOL,
    FrameJob,
    FrameWork,
    ScoringPool,
    default_workers,
    mask_hash,
)

from .masks import vessels


def job(index: int) -> FrameJob:
    truth = vessels(index, 48)[None]
    noise = np.random.default_rng(index).random(truth.shape)
    meta = {
        "index": index,
        "frame": f"f{index}",
        "patient": None,
        "phrases": ["vessel"],
        "image_path": "",
        "spacing": (0.3, 0.3),
    }
    map_ = (0.5 * truth + 0.5 * noise).astype(np.float32)
    return FrameJob(meta, truth, map_, ["Sure, [SEG]."], [True])


@dataclass(frozen=True)
class DiesAt(FrameWork):
    """Work whose process ends at one frame, as if the system had killed it."""

    index: int = -1

    def __call__(self, job: FrameJob) -> FrameResult:
        if job.meta["index"] == self.index:
            os._exit(1)
        return super().__call__(job)


def plain(frame: FrameResult) -> tuple:
    row = frame.rows[0]
    return frame.index, repr(row.scores.values()), repr(row.oracle.values()), row.truth_hash


def test_another_process_gives_the_same_in_order_and_its_death_is_told():
    work = DiesAt(Scorer(0.5), grid=(12, 12), index=20)
    # Forked: importing everything afresh takes longer than all other tests of this folder.
    pool = ScoringPool(work, 1, "fork")
    try:
        for index in range(6):
            pool.submit(job(index))
        pool.submit(job(20))
        with pytest.raises(SetupError, match=r"(?s)scoring process died.*workers=0"):
            pool.finish()
    finally:
        pool.close()
    # What was done before is in order and what this process makes of it.
    assert [plain(frame) for frame in pool.done] == [plain(work(job(k))) for k in range(6)]


def test_few_frames_are_scored_in_the_loop():
    assert default_workers(WORTH_A_POOL - 1) == 0
    assert 1 <= default_workers(WORTH_A_POOL) <= 8
    assert default_workers(WORTH_A_POOL, processes=10**6) == 1


def test_hashes_tell_masks_apart():
    mask = np.zeros((4, 6), bool)
    other = mask.copy()
    other[3, 5] = True
    hashes = {mask_hash(m) for m in (mask, other, mask.reshape(6, 4), mask[:3])}
    assert len(hashes) == 4 and mask_hash(mask) == mask_hash(mask.copy())
