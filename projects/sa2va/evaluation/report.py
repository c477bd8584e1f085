"""All numbers of a run, as a table and as metrics.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bootstrap import Intervals, intervals
from .guards import copy_fault, notes_on
from .metrics import Scorer
from .phrases import PhraseScores, phrase_scores
from .reliability import describe, reliability_of
from .rows import FrameResult, tally
from .summary import Summary, summarise
from .table import metrics_table
from .writer import frame_records

THRESHOLD_RULE = "probability >= threshold"
PROVENANCE = (
    *("answer_mode", "checkpoint", "weights", "config", "split"),
    *("split_name", "threshold_source"),
)
"""Keys of metrics.json that the test tool hands in; null, with a warning, where it did not."""


@dataclass(frozen=True)
class Report:
    """The numbers of all frames.

    Attributes:
        frames: in the order of the data set.
        scorer: what they were scored with.
        grid: rows and columns of the decoder's logits, or None.
        summary: the means.
        counts: of frames and rows.
        intervals: of the means, or None.
        oracle: the means of the truth pushed through ``grid``, or None.
        calibration: what :func:`.reliability.reliability` found, or None where it was not kept.
        fault: why these are no results; empty if they are.
        phrases: scores by phrase, or None where there is only one.
    """

    frames: Sequence[FrameResult]
    scorer: Scorer
    grid: tuple[int, int] | None
    summary: Summary
    counts: Mapping[str, int]
    intervals: Intervals | None
    oracle: Summary | None
    calibration: dict[str, Any] | None
    fault: str
    phrases: PhraseScores | None

    @classmethod
    def of(
        cls,
        frames: Sequence[FrameResult],
        scorer: Scorer,
        *,
        grid: tuple[int, int] | None = None,
        resamples: int = 0,
        max_exact_copies: float = 1.0,
        frames_of_split: int | None = None,
        phrase_kinds: Mapping[str, str] | None = None,
    ) -> Report:
        """Computes them.

        Args:
            frames: with an oracle in every row where there is a ``grid``.
            scorer: what they were scored with.
            grid: rows and columns of the decoder's logits.
            resamples: of the intervals; 0 for none.
            max_exact_copies: see :func:`~.guards.copy_fault`.
            frames_of_split: how many there would be without ``limit`` and ``indices``.
            phrase_kinds: kind of each phrase, where the data set tells kinds apart.
        """
        counts = tally(frames)
        counts["frames_of_split"] = counts["frames"] if frames_of_split is None else frames_of_split
        return cls(
            frames=frames,
            scorer=scorer,
            grid=grid,
            summary=summarise(frames, scorer.names),
            counts=counts,
            intervals=intervals(frames, scorer.names, resamples=resamples) if resamples else None,
            oracle=summarise(frames, scorer.names, lambda row: row.oracle) if grid else None,
            calibration=reliability_of(frames, resamples) if scorer.calibration else None,
            fault=copy_fault(counts, max_exact_copies),
            phrases=phrase_scores(frames, phrase_kinds, resamples=resamples)
            if counts["phrases"] > 1
            else None,
        )

    @property
    def seg_emission_rate(self) -> float:
        """Share of the answers that held [SEG]."""
        return self.counts["with_seg"] / self.counts["rows"]

    def flat(self) -> dict[str, float]:
        """What a training curve shows: see :meth:`.vessel_metric.VesselMetric.compute_metrics`."""
        flat = dict(self.summary.mean)
        if self.summary.per_patient:
            flat |= {f"patient_{n}": value for n, value in self.summary.patient_mean.items()}
        flat |= {f"pooled_{name}": self.summary.pooled[name] for name in ("dice", "iou")}
        if self.phrases is not None:
            flat |= self.phrases.flat()
        return flat | {"seg_emission_rate": self.seg_emission_rate}

    def table(self) -> str:
        """For the log."""
        return metrics_table(
            self.summary,
            frames=self.counts["frames"],
            rows=self.counts["rows"],
            threshold=self.scorer.threshold,
            footer="\n".join(self._footer()),
            intervals=self.intervals,
            oracle=self.oracle,
        )

    def _footer(self) -> list[str]:
        post = self.scorer.postprocess.describe()
        lines = [f"after the cut: {post}"] if post else []
        if self.calibration is not None:
            lines.append(describe(self.calibration))
        return [*lines, f"[SEG] in {self.counts['with_seg']} of {self.counts['rows']} answers"]

    def notes(self) -> list[str]:
        """What a reader of the numbers must know, one line each."""
        notes = notes_on(self.counts)
        rows = [row for frame in self.frames for row in frame.rows]
        right = sum(row.counts.empty_truth and not row.seg_emitted for row in rows)
        if right and self.phrases is not None:
            # Behind the note that counts all answers without [SEG].
            notes.insert(1, f"{right} of these are right: their phrase is not in the image.")
        return notes

    def content(self, provenance: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
        """What metrics.json holds.

        Args:
            provenance: where the predictions came from.
            warnings: :meth:`notes`, and what else there is to say.
        """
        rows = Counter(frame.patient for frame in self.frames for _ in frame.rows)
        own = {
            "valid": not self.fault,
            "invalid_because": [self.fault] if self.fault else [],
            "mean": self.summary.mean,
            "patient_mean": self.summary.patient_mean,
            "pooled": self.summary.pooled,
            "undefined": self.summary.undefined,
            "intervals": None if self.intervals is None else self.intervals.as_dict(),
            "oracle": self._oracle(),
            "metrics": list(self.scorer.names),
            "centreline_tolerance_px": self.scorer.tolerance,
            "threshold": self.scorer.threshold,
            "threshold_rule": THRESHOLD_RULE,
            "postprocess": self.scorer.postprocess.as_dict(),
            "calibration": self.calibration,
            "seg_emission_rate": self.seg_emission_rate,
            "counts": self.counts,
            "warnings": list(warnings),
            "per_patient": {
                patient: {"rows": rows[patient], **metrics}
                for patient, metrics in self.summary.per_patient.items()
            },
            "per_frame": frame_records(self.frames),
        }
        if self.phrases is not None:
            own["phrases"] = self.phrases.as_dict()
        return {**dict.fromkeys(PROVENANCE), **provenance, **own}

    def _oracle(self) -> dict[str, Any] | None:
        if self.oracle is None:
            return None
        return {
            "grid": self.grid,
            "mean": self.oracle.mean,
            "patient_mean": self.oracle.patient_mean,
            "pooled": self.oracle.pooled,
        }


OWN_KEYS = frozenset(
    (
        *("valid", "invalid_because", "mean", "patient_mean", "pooled", "undefined", "intervals"),
        *("oracle", "metrics", "centreline_tolerance_px", "threshold", "threshold_rule"),
        *("postprocess", "calibration", "seg_emission_rate", "counts", "warnings"),
        *("per_patient", "per_frame", "phrases"),
    )
)
"""Keys of metrics.json that are no provenance."""
