"""Everything that can be wrong with a sweep, found before its first run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry import MODELS

from ..config import flatten, load_config
from ..engine.data_check import check_training_data
from ..engine.start import starting_point
from ..errors import ConfigError, UserError, listing
from ..models.segmentation import nothing_to_train
from .spec import Row, Spec

_SPLITS = ("train", "val", "test")
_NEEDED = ("train_dataloader", "train_cfg", "optim_wrapper", "test_dataloader", "test_evaluator")


def resolve(spec: Spec) -> dict[str, Config]:
    """The config of each row with its overrides, checked.

    Raises:
        ConfigError: a config that cannot be loaded or cannot be trained and tested as the sweep
            wants it, or two rows that are the same run; the message names the row.
    """
    configs: dict[str, Config] = {}
    for row in spec.rows:
        with _named(row):
            cfg = load_config(row.config, row.options)
            _check_row(spec, cfg, row)
        for name, other in configs.items():
            if other.to_dict() == cfg.to_dict():
                raise ConfigError(
                    found=f"the rows {name!r} and {row.name!r} resolve to the same config",
                    expected="rows that differ: an override that changes nothing is none",
                    fix="correct the options of one of them, or remove it",
                )
        configs[row.name] = cfg
    return configs


def check_data(
    spec: Spec, configs: Mapping[str, Config], only: Sequence[str] | None = None
) -> None:
    """Reads the data of all rows once, as tools/train.py does, and compares what is tested.

    Args:
        spec, configs: of all rows.
        only: names of the rows to be run, whose starting checkpoints are read too; None: all.

    Raises:
        CheckpointError: a row starts from a checkpoint that is not there, or does not fit.
        DataError: broken files, bad annotations, splits that share a frame or a patient, or
            frames to evaluate that the checkpoint a row starts from was trained on.
        ConfigError: rows that are tested on different frames or labels.
    """
    read: dict[str, dict] = {}
    tested: dict[str, str] = {}
    for row in spec.rows:
        cfg = configs[row.name]
        sets = {split: cfg.get(f"{split}_dataloader", {}).get("dataset") for split in _SPLITS}
        runs = not only or row.name in only
        begins = [cfg.get("load_from"), cfg.get("init_from")] if runs else []
        about = [sets, cfg.get("allow_near_duplicates"), begins]
        text = json.dumps(about, sort_keys=True, default=str)
        if text not in read:
            with _named(row):
                read[text] = check_training_data(cfg, *(starting_point(cfg) if runs else ()))
        tested[row.name] = read[text][spec.test_split]["hash"]
    first = spec.rows[0].name
    other = [name for name, digest in tested.items() if digest != tested[first]]
    if other:
        raise ConfigError(
            found=f"the {spec.test_split} frames or labels of {listing(other)} are not those of "
            f"{first!r}",
            expected="the same frames and labels for every row: else differences are not those of "
            "the models",
            fix=f"leave {spec.test_split}_dataloader.dataset alike in all rows",
        )


def _check_row(spec: Spec, cfg: Config, row: Row) -> None:
    if not MODELS.get(cfg.model.type).is_trainable:
        raise nothing_to_train(cfg.model.type)
    needed = list(_NEEDED)
    if spec.tune is not None or spec.test_split == "val" or spec.checkpoint == "best":
        needed.append("val_dataloader")
    missing = [key for key in needed if not cfg.get(key)]
    if missing:
        raise ConfigError(
            found=f"{row.config} without {listing(missing)}",
            expected="frames, schedule and evaluator for all that the sweep does",
            fix="add what is missing to the config",
        )
    best = cfg.default_hooks.checkpoint.get("save_best")
    if spec.checkpoint == "best" and not isinstance(best, str):
        raise ConfigError(
            found=f"checkpoint='best' and default_hooks.checkpoint.save_best={best!r}",
            expected="the name of one validation metric",
            fix="default_hooks.checkpoint.save_best='vessel/dice', or checkpoint='last'",
        )
    if spec.tune is not None and cfg.test_evaluator.get("save_probabilities") == "none":
        raise ConfigError(
            found="tune and test_evaluator.save_probabilities='none'",
            expected="maps, from which the threshold is chosen",
            fix="test_evaluator.save_probabilities='png', or tune=None",
        )


@contextmanager
def _named(row: Row) -> Iterator[None]:
    """Names the row in an error."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"row {row.name!r}: {error.found}", error.expected, error.fix) from error


def differences(before: Config, now: Config) -> list[str]:
    """The keys in which two configs differ, with both values."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key} = {new.get(key)!r} (was {old.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
