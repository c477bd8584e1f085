"""How far tools/preflight.py is from measured peaks, at true size.

    python benchmarks/preflight_rows.py

Plans every row of ``results/preflight_rows.json`` and prints planned beside measured memory. Half a
minute a row on one core; needs no card. Exits with 1 where a row is more than 8 % off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "benchmarks" / "configs" / "true_size_8b.py"
ROWS = ROOT / "benchmarks" / "results" / "preflight_rows.json"
FRAME_SIZE = 512  # px, of the frames that were measured
TOLERANCE = 0.08
GIB = 2**30


def planned(row: dict[str, Any]) -> tuple[float, float]:
    """Allocated and reserved GiB that the plan says for a row of :data:`ROWS`."""
    from benchmarks.true_size import train_whole_tables
    from projects.sa2va.config import load_config
    from projects.sa2va.planning import Request, make_plan

    options = dict(row["cfg_options"])
    if row["section"] == "inference":
        options["train_cfg"] = None  # no need to trace a training step
    cfg = load_config(CONFIG, options, check=False)
    request = Request(gpus=row["gpus"], strategy=row["strategy"], frame_size=FRAME_SIZE)
    alter = train_whole_tables if row.get("whole_tables") else None
    section = make_plan(cfg, request, alter).section(row["section"])
    return section.allocated / GIB, section.peak / GIB


def main() -> int:
    """Prints the table."""
    worst = 0.0
    print("| row | allocated: planned | measured | | reserved: planned | measured | |")
    print("|---|---|---|---|---|---|---|")
    for row in json.loads(ROWS.read_text()):
        cells = [row["row"]]
        for found, key in zip(
            planned(row), ("peak_allocated_gib", "peak_reserved_gib"), strict=True
        ):
            off = found / row[key] - 1
            worst = max(worst, abs(off))
            cells += [f"{found:.2f}", f"{row[key]:.2f}", f"{off:+.1%}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
