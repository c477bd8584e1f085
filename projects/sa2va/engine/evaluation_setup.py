"""What is scored, and where the threshold comes from: choices of a test run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from projects.sa2va.checkpoints import RAW, sha256_of
from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation.chosen_threshold import (
    ChosenThreshold,
    model_digest,
    read_threshold,
    threshold_file_of,
)
from projects.sa2va.evaluation.postprocess import PostProcess

_OURS = ("test_evaluator.threshold", "test_evaluator.postprocess")


def choose_split(cfg: Config, split: str | None) -> Mapping[str, Any] | None:
    """Makes the frames of ``split`` those that are scored.

    Args:
        cfg: changed in place: ``test_dataloader.dataset`` and ``test_cfg.split_name``.
        split: 'test', 'val', or None for what the config says (the config that a run on validation
            frames leaves behind says 'val').

    Returns:
        The config's test set where other frames take its place; else None.

    Raises:
        ConfigError: the config has no such split.
    """
    cfg.test_cfg = cfg.get("test_cfg") or {"type": "Sa2VATestLoop"}
    own = cfg.test_cfg.get("split_name", "test")
    if split is None or split == own:
        return None
    loader = cfg.get("val_dataloader")
    if split != "val" or not loader:
        raise ConfigError(
            found=f"--split {split} with a config that "
            + ("has no val_dataloader" if split == "val" else f"holds the {own} frames of a run"),
            expected="a config with the frames of that split",
            fix="give the config of the training run",
        )
    held_out = (cfg.get("test_dataloader") or {}).get("dataset")
    if held_out is None:
        cfg.test_dataloader = loader
    else:
        cfg.test_dataloader.dataset = loader.dataset
    cfg.test_cfg.split_name = split
    return held_out


def choose_threshold(
    cfg: Config,
    threshold: str | None,
    checkpoint: str | None,
    options: Mapping[str, Any] | None = None,
    weights: str = RAW,
) -> ChosenThreshold | None:
    """Sets the evaluator's threshold and post-processing, and says where they come from.

    Args:
        cfg: changed in place: ``test_evaluator`` and ``test_cfg.threshold_source``.
        threshold: a number; 'config'; a threshold file; None for the file beside the checkpoint,
            where there is one and it was chosen on another split, else for the config's.
        checkpoint: file or folder; None for a model without one.
        options: overrides of the config; one of threshold or post-processing counts as a number.
        weights: which of the checkpoint's are tested, ``averaged`` or ``raw``.

    Returns:
        The threshold file that is used, or None.

    Raises:
        ConfigError: no such file, or no number above 0 and at most 1.
        CheckpointError: the file is of another checkpoint, or of its other weights.
    """
    source: dict[str, Any] = {"kind": "config"}
    chosen = None
    given = [key for key in options or () if key.startswith(_OURS)]
    if threshold is not None and threshold != "config" and given:
        raise ConfigError(
            found=f"--threshold {threshold} together with --cfg-options {given[0]}",
            expected="one of them",
            fix="leave one of them out",
        )
    if threshold is None and given:
        source = {"kind": "command line"}
    elif threshold is None and checkpoint is not None:
        chosen = _beside(cfg, checkpoint)
    elif threshold not in (None, "config"):
        number = _number(threshold)
        if number is None:
            chosen = read_threshold(threshold)
        else:
            source = {"kind": "command line"}
            cfg.test_evaluator.threshold = number
            PostProcess(**(cfg.test_evaluator.get("postprocess") or {})).check(number)
    if chosen is not None:
        sha256 = None if checkpoint is None else sha256_of(checkpoint)
        digest = model_digest(cfg.model.to_dict())
        notes = chosen.check_weights(sha256, digest, str(checkpoint), weights)
        for note in notes:
            print_log(note, logger="current", level=logging.WARNING)
        cfg.test_evaluator.threshold = chosen.threshold
        cfg.test_evaluator.postprocess = chosen.postprocess
        source = chosen.source()
    cfg.test_cfg.threshold_source = source
    return chosen


def describe_source(threshold: float, source: Mapping[str, Any]) -> str:
    """One line for the log: which threshold, and where it comes from."""
    if source["kind"] != "tuned":
        return f"Threshold {threshold:g}, from the {source['kind']}"
    return (
        f"Threshold {threshold:g}, tuned for {source['metric']} on the split "
        f"{source['split_name']!r} ({source['split'][:16]}): {source['file']}"
    )


def _beside(cfg: Config, checkpoint: str) -> ChosenThreshold | None:
    """The file beside the checkpoint; None where there is none, or it was chosen on this split."""
    path = threshold_file_of(checkpoint)
    if not path.is_file():
        return None
    chosen = read_threshold(path)
    name = cfg.test_cfg.get("split_name", "test")
    if chosen.content["split_name"] == name:
        print_log(f"{path.name} is not used: it was chosen on the split {name!r}", logger="current")
        return None
    return chosen


def _number(text: str) -> float | None:
    """``text`` as a threshold; None where it is no number but a path."""
    try:
        value = float(text)
    except ValueError:
        if not Path(text).suffix:
            raise _wrong(text) from None
        return None
    if not 0 < value <= 1:
        raise _wrong(text)
    return value


def _wrong(text: str) -> ConfigError:
    return ConfigError(
        found=f"--threshold {text}",
        expected="a number above 0 and at most 1, 'config', or a file of tools/tune_threshold.py",
        fix="correct --threshold, or leave it out",
    )
