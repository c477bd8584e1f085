"""From what a user names (config, run folder, checkpoint, whole Sa2VA) to a config and weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoints import (
    RAW,
    check_kind,
    choose_weights,
    is_deepspeed_folder,
    read_checkpoint,
    read_stored_config,
)
from ..config import CONFIG_DIR, load_config, override
from ..errors import CheckpointError, ConfigError, SetupError
from ..evaluation.chosen_threshold import model_sha256
from ..models.pretrained import SAM2_FOLDER
from ..models.segmentation import predicts_no_masks
from ..weights.layouts import Source, open_source
from ..weights.published_configs import tile_sizes

NO_CHECKPOINT = "none"
_WHOLE = CONFIG_DIR / "sa2va_vessel_finetune_released.py"
_PLACES = ("pretrained", "path")
_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from.

    Attributes:
        cfg: with ``model``, ``test_evaluator`` and ``test_cfg``.
        checkpoint: read; None for a model without one.
        path: of the checkpoint.
        text: config and checkpoint, a line for the log.
    """

    cfg: Config
    checkpoint: dict[str, Any] | None
    path: str | None
    text: str

    def weights(self) -> str:
        """Which weights of the checkpoint predict, ``averaged`` or ``raw``."""
        if self.checkpoint is None:
            return RAW
        return choose_weights(self.checkpoint, str(self.path), self.cfg.test_cfg.get("weights"))[1]

    def model_sha256(self) -> str:
        """Of what the config says about the model, ``--cfg-options`` among it.

        Where a checkpoint has the weights, the folders of the published ones do not count: they
        differ from machine to machine.
        """
        skipped = () if self.path is None else _PLACES
        return model_sha256(_without(self.cfg.model.to_dict(), skipped))


def _without(value: Any, skipped: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(one, skipped) for key, one in value.items() if key not in skipped}
    return value


def find_model(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Finds config and checkpoint; nothing is built.

    Args:
        config: a config file; the work dir of a training run; a training checkpoint (its config is
            inside); or the folder of a whole Sa2VA (released, or exported by tools/convert.py).
        checkpoint: file or folder of trained weights; 'none' for a model as its config builds it.
            A run's folder has its own: the best one, or else the newest.
        cfg_options: overrides of the config.

    Raises:
        UserError: nothing there, no checkpoint named, or one that does not belong to the config.
    """
    path = Path(os.path.expanduser(os.fspath(config)))
    given = None if checkpoint is None else os.path.expanduser(os.fspath(checkpoint))
    if path.suffix == ".py":
        cfg = load_config(path, cfg_options)
        if given is None:
            given = _needs_none(cfg, path)
        return _with(cfg, given, f"config {path.name}")
    if path.is_dir() and (path / "config.json").is_file():
        return _whole(path, given, cfg_options)
    adapter = (path / "adapter_config.json").is_file()
    if path.is_dir() and not is_deepspeed_folder(path) and not adapter:
        return _stored(given or str(best_checkpoint(path)), cfg_options)
    if path.exists() or path.suffix in _SUFFIXES:
        if given is not None and given != str(path):
            raise ConfigError(
                found=f"two checkpoints: {path} and {given}",
                expected="a config and a checkpoint, or one checkpoint",
                fix="name the config first, or leave one checkpoint out",
            )
        return _stored(str(path), cfg_options)
    raise SetupError(
        found=f"no file or folder {path}",
        expected="a config (.py), the work dir of a training run, a checkpoint (.pth), or the "
        "folder of a Sa2VA",
        fix="correct the path; the configs that come with this project are in "
        f"{CONFIG_DIR.relative_to(CONFIG_DIR.parents[2])}",
    )


def best_checkpoint(folder: Path) -> Path:
    """The best checkpoint of a run's work dir, or else the newest.

    Raises:
        CheckpointError: there is none.
    """
    best = sorted(folder.glob("best_*.pth"), key=lambda p: p.stat().st_mtime)
    if best:
        return best[-1]
    newest = folder / "last_checkpoint"
    if newest.is_file():
        # Moved folders keep their files' names, not their paths.
        return folder / Path(newest.read_text(encoding="utf-8").strip()).name
    raise CheckpointError(
        found=f"no best_*.pth and no last_checkpoint in {folder}",
        expected="the work dir of a training run, or the folder of a whole Sa2VA (config.json)",
        fix="give a config and --checkpoint FILE",
    )


def _needs_none(cfg: Config, path: Path) -> str:
    """A config by itself is enough where it loads a whole, trained Sa2VA, or nothing is trained."""
    from mmengine.registry import MODELS

    trained = cfg.model.get("pretrained") is not None
    if trained or not MODELS.get(cfg.model.type).is_trainable:
        return NO_CHECKPOINT
    raise CheckpointError(
        found=f"{path.name} without a checkpoint: what it trains has random weights",
        expected="the weights that tools/train.py wrote with this config",
        fix="give --checkpoint work_dirs/.../best_*.pth (in Python: checkpoint=...); "
        f"'{NO_CHECKPOINT}' predicts with the untrained model",
    )


def _check_predicts(cfg: Config) -> None:
    from mmengine.registry import MODELS

    if not MODELS.get(cfg.model.type).predicts_masks:
        raise predicts_no_masks(cfg.model.type)


def _with(cfg: Config, given: str, what: str) -> ModelSource:
    _check_predicts(cfg)
    if given.lower() == NO_CHECKPOINT:
        return ModelSource(cfg, None, None, f"{what}, no checkpoint")
    checkpoint = read_checkpoint(given)
    check_kind(cfg.model.type, checkpoint["meta"], given)
    return ModelSource(cfg, checkpoint, given, f"{what}, checkpoint {Path(given).name}")


def _stored(path: str, cfg_options: Mapping[str, Any] | None) -> ModelSource:
    """A checkpoint with its own config."""
    checkpoint = read_checkpoint(path)
    text = checkpoint["meta"].get("cfg")
    if not text or checkpoint["layout"] != "trainable":
        raise CheckpointError(
            found=f"{path} holds no config that can be read (it was written by another program)",
            expected="a checkpoint of tools/train.py, or a config beside this one",
            fix="name the config: projects/sa2va/configs/sa2va_vessel_finetune_released.py fits "
            "checkpoints of the reference, with --checkpoint " + path,
        )
    cfg = override(read_stored_config(text, path), cfg_options or {})
    _check_predicts(cfg)
    what = f"config inside {Path(path).name}"
    return ModelSource(cfg, checkpoint, path, f"{what}, checkpoint {Path(path).name}")


def _whole(folder: Path, given: str | None, cfg_options: Mapping[str, Any] | None) -> ModelSource:
    """A released or exported Sa2VA: what its config.json says, in a config of ours."""
    source = open_source(folder)
    native = source.layout.name == "internvl-native"
    if source.layout.name != "sa2va" and not (native and (folder / SAM2_FOLDER).is_dir()):
        raise CheckpointError(
            found=f"{source.layout.what} in {folder}",
            expected="a whole Sa2VA: released, or exported by tools/convert.py",
            fix="give a config that names it in model.mllm.pretrained, and a --checkpoint",
        )
    own = {
        "model.pretrained": str(folder),
        **_sizes(source, folder),
        # Nothing trains here, so nothing needs to be laid out for training.
        "model.mllm.lora": None,
        "model.mllm.train_token_rows": False,
        "model.mllm.train_projector": False,
        "model.mllm.gradient_checkpointing": False,
        "model.grounding.train_mask_decoder": False,
    }
    cfg = load_config(_WHOLE, {**own, **(cfg_options or {})})
    return _with(cfg, given or NO_CHECKPOINT, f"Sa2VA in {folder.name}")


def _sizes(source: Source, folder: Path) -> dict[str, Any]:
    """Overrides of ``processor`` from the config.json of a whole Sa2VA."""
    config = source.config
    vision = config["vision_config"]
    ratio = config.get("downsample_ratio", 0.5)
    size, _, tokens = tile_sizes(vision["image_size"], vision["patch_size"], ratio)
    sam2 = config.get("sam2_config", {})
    if (folder / SAM2_FOLDER).is_dir():
        sam2 = open_source(folder / SAM2_FOLDER).config
    many = config.get("dynamic_image_size", False)
    return {
        "processor.tile_size": size,
        "processor.tokens_per_tile": tokens,
        "processor.min_tiles": config.get("min_dynamic_patch", 1) if many else 1,
        "processor.max_tiles": config.get("max_dynamic_patch", 12) if many else 1,
        "processor.image_size": sam2.get("prompt_encoder_config", {}).get("image_size", 1024),
    }
