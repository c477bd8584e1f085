"""The data of a run, checked before it: files, annotations, and that nothing evaluated was trained.

A test looks at two training splits: that of its config, and the one that the checkpoint was trained
on, which the checkpoint records (:mod:`~projects.sa2va.datasets.leakage`), because the config may
have been edited in between.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from projects.sa2va.checkpoints import TRAINING_RECORD
from projects.sa2va.datasets.base import VesselDataset
from projects.sa2va.datasets.hashes import image_hashes, split_hash
from projects.sa2va.datasets.integrity import check_dataset, check_splits
from projects.sa2va.datasets.leakage import check_unseen, training_record
from projects.sa2va.errors import DataError
from projects.sa2va.evaluation.chosen_threshold import ChosenThreshold

_SPLITS = ("train", "val", "test")


def check_training_data(
    cfg: Config, loaded: Mapping[str, Any] | None = None, source: str | None = None
) -> dict[str, dict[str, Any]]:
    """Reads every frame and annotation of all splits once.

    Args:
        cfg: config of the training run.
        loaded: meta data of the checkpoint that the run starts from or goes on from.
        source: its path.

    Returns:
        Per split its number of ``frames`` and its ``hash``; of the training split also the
        ``training_record``, with the frames of ``loaded``.

    Raises:
        DataError: broken files, bad annotations, splits that share an image, a near-duplicate or
            a patient, or frames to evaluate that ``loaded`` was trained on.
    """
    loaders = {split: cfg.get(f"{split}_dataloader") for split in _SPLITS}
    datasets = {s: DATASETS.build(loader["dataset"]) for s, loader in loaders.items() if loader}
    allow = cfg.get("allow_near_duplicates", ())
    _say([f"{s}: {text}" for s, d in datasets.items() for text in check_dataset(d).warnings])
    _say(check_splits(datasets, allow_near_duplicates=allow))
    earlier = (loaded or {}).get(TRAINING_RECORD)
    if earlier is not None:
        evaluated = {split: d for split, d in datasets.items() if split != "train"}
        _say(check_unseen(evaluated, earlier, str(source), allow))
    splits = {s: {"frames": len(d), "hash": split_hash(d)} for s, d in datasets.items()}
    if "train" in datasets:
        splits["train"][TRAINING_RECORD] = training_record(datasets["train"], earlier)
    return splits


def check_test_data(
    cfg: Config,
    others: Mapping[str, Mapping[str, Any] | None],
    meta: Mapping[str, Any] | None = None,
    source: str | None = None,
    chosen: ChosenThreshold | None = None,
) -> str | None:
    """Reads the split that is scored, and compares it with what was trained on and tuned on.

    Args:
        cfg: config of the test run.
        others: data sets of the config's training split, and of its test split where another one is
            scored, by 'train' and 'test'.
        meta: meta data of the checkpoint to test; None without one.
        source: its path.
        chosen: the threshold file that is used.

    Returns:
        Hash of the test split where another one is scored and it can be read.

    Raises:
        DataError: broken files, bad annotations, or test frames, near-duplicates of them or their
            patients among the training frames of config or checkpoint, or among the frames that
            the threshold was chosen on.
    """
    name = cfg.test_cfg.get("split_name", "test")
    test = DATASETS.build(cfg.test_dataloader.dataset)
    allow = cfg.get("allow_near_duplicates", ())
    _say([f"{name}: {text}" for text in check_dataset(test).warnings])
    record = (meta or {}).get(TRAINING_RECORD)
    if record is not None:
        _say(check_unseen({name: test}, record, str(source), allow))
    elif meta is not None:
        _say([f"{source} does not say which frames it was trained on: not compared with the test"])
    if chosen is not None:
        _say(chosen.check_frames(test, name, allow))
    read = {which: _other_split(which, name, config) for which, config in others.items() if config}
    read = {which: dataset for which, dataset in read.items() if dataset is not None}
    if read:
        _say(check_splits({**read, name: test}, allow_near_duplicates=allow))
    return split_hash(read["test"]) if "test" in read else None


def _other_split(which: str, name: str, config: Mapping[str, Any]) -> VesselDataset | None:
    """A split with its images read; None, with a warning, where it cannot be read."""
    try:
        dataset = DATASETS.build(config)
        files = dataset.on_disk()
        if files is not None:
            image_hashes(files, "pixels", progress=True)
    except DataError as error:
        # Tests also run where the training data are not; a broken one is training's affair.
        long = {"train": "training"}.get(which, which)
        text = f"the {long} split of the config was not compared with the {name}: {error.found}"
        _say([text])
        return None
    return dataset


def _say(warnings: list[str]) -> None:
    for warning in warnings:
        print_log(warning, logger="current", level=logging.WARNING)
