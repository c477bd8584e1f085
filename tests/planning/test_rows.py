"""The plan of a true-size recipe agrees with what was measured on a card.

One row, the quickest; ``benchmarks/preflight_rows.py`` plans them all.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.preflight_rows import ROWS, TOLERANCE, planned


def test_a_prediction_is_planned_within_eight_percent_of_the_measured_peak() -> None:
    rows = {row["row"]: row for row in json.loads(ROWS.read_text())}
    row = rows["predict 1024, LoRA merged, one card"]
    allocated, reserved = planned(row)
    assert allocated == pytest.approx(row["peak_allocated_gib"], rel=TOLERANCE)
    assert reserved == pytest.approx(row["peak_reserved_gib"], rel=TOLERANCE)
