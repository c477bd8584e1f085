"""Prints a config as a run sees it: bases merged, overrides set, shared keys handed down.

python tools/print_config.py CONFIG [--cfg-options key=value ...]
python tools/print_config.py CONFIG --diff OTHER        (the keys in which two configs differ)
"""

from __future__ import annotations

import argparse

import _bootstrap  # noqa: F401
from mmengine.config import DictAction

from projects.sa2va.columns import columns
from projects.sa2va.config import flatten, load_config
from projects.sa2va.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print a config as a run sees it.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--diff", metavar="OTHER", help="print only where OTHER differs from it")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, keys with dots"
    )
    return parser.parse_args()


def differences(left: dict[str, object], right: dict[str, object]) -> list[tuple[str, str, str]]:
    """``(key, left, right)`` as text, of each flattened key that differs or is in one only."""
    rows = []
    for key in dict.fromkeys([*left, *right]):
        texts = [repr(side[key]) if key in side else "-" for side in (left, right)]
        if texts[0] != texts[1]:
            rows.append((key, *texts))
    return rows


@exit_on_user_error
def main() -> None:
    """Prints the config, or a table of differences."""
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.diff is None:
        print(cfg.pretty_text)
        return
    rows = differences(flatten(cfg), flatten(load_config(args.diff)))
    if not rows:
        print("no difference")
        return
    rows.insert(0, ("key", args.config, args.diff))
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
