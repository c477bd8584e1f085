"""Checks the data sets of a config and shows what is wrong with them; changes nothing.

    python tools/verify_dataset.py CONFIG [--out DIR] [--split train val test]
    python tools/verify_dataset.py CONFIG --fix DIR [--labels-size 800x800]

Writes findings.html (with pictures) and findings.json. --fix writes corrected annotations into a
folder of their own. Exit status: 0 without errors, 1 with errors, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import _bootstrap  # noqa: F401
from mmengine.config import DictAction

from projects.sa2va.columns import columns
from projects.sa2va.config import load_config
from projects.sa2va.datasets.verify import KINDS, verify
from projects.sa2va.datasets.verify.fix import parse_size, write_fixed
from projects.sa2va.datasets.verify.page import findings_json, html_page
from projects.sa2va.errors import exit_on_user_error
from projects.sa2va.evaluation.writer import strict
from projects.sa2va.files import make_writable, write_atomic

_MOST_PRINTED = 20


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check the data sets of a config.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--out", help="folder of the page (default: work_dirs/<config>/data_check)")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="only these splits")
    parser.add_argument("--pictures", type=int, default=6, help="most pictures of a kind (6)")
    parser.add_argument("--fix", metavar="DIR", help="new folder for corrected annotations")
    parser.add_argument(
        "--labels-size",
        metavar="WxH",
        help="with --fix: size that the labels were drawn at, where the file does not say it",
    )
    parser.add_argument("--workers", type=int, help="threads (default: one a processor)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    return parser.parse_args()


@exit_on_user_error
def main() -> int:
    """Checks, writes the page, and prints what it holds.

    Returns:
        Exit status: 1 where errors were found, else 0.
    """
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    size = parse_size(args.labels_size) if args.labels_size else None
    name = Path(args.config).stem
    out = make_writable(args.out or f"work_dirs/{name}/data_check", "--out")
    if args.fix:
        changes = write_fixed(cfg, args.fix, args.split, size)
        print("\n".join(changes.lines()))
    checked = verify(cfg, args.split, workers=args.workers)
    page = html_page(checked, f"Data of {name}", args.pictures).encode("utf-8")
    text = json.dumps(strict(findings_json(checked)), indent=1).encode()
    write_atomic(out / "findings.html", lambda file: file.write(page))
    write_atomic(out / "findings.json", lambda file: file.write(text))
    for finding in [f for f in checked.findings if f.severity != "info"][:_MOST_PRINTED]:
        print(f"{finding.severity}: {finding.local_text or finding.text}")
    counts = Counter(finding.kind for finding in checked.findings)
    rows = [(KINDS[k].severity, str(n), KINDS[k].title) for k, n in counts.items()]
    print("\n".join(columns([("severity", "findings", "what"), *rows])))
    print(f"{out / 'findings.html'}")
    return 1 if checked.count("error") else 0


if __name__ == "__main__":
    raise SystemExit(main())
