"""Lets ``python tools/x.py`` find the package from any folder, and name what is not installed."""

import os
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Read once, when torch loads its OpenMP. Its threads spin while they wait, which on a CPU that
# others use too made training four times slower than threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Memory that is free in many pieces counts as taken: at true size up to 1 GiB of a 24 GB card
# (benchmarks/README.md). Read when torch first allocates on a card.
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# torch counts the cards when it is imported.
if ("--placement", "cpu") in pairwise(sys.argv) or "--placement=cpu" in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

try:
    import projects.sa2va  # noqa: F401
except Exception as error:
    # A package is missing (SetupError): its class cannot be imported, because the package that
    # holds it is what failed.
    if type(error).__name__ != "SetupError":
        raise
    print(f"SetupError\n  {error}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None
