"""The threshold that belongs to a checkpoint: ``<checkpoint>.threshold.json`` beside it.

``tools/tune_threshold.py`` writes it, ``tools/test.py`` and ``tools/score.py`` use it, and only for
what it was made for: these weights (by hash), and other frames than those it was chosen on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, DataError, listing
from ..files import write_atomic
from .postprocess import PostProcess
from .report import THRESHOLD_RULE
from .threshold_choice import Curve, Target
from .writer import strict

if TYPE_CHECKING:
    from ..datasets.base import VesselDataset

FORMAT = "sa2va-vessel threshold/1"
_SUFFIXES = (".pth", ".pt", ".safetensors")
_NEEDED = (
    *("threshold", "threshold_rule", "postprocess", "metric", "average", "split", "split_name"),
    *("checkpoint", "model", "frames"),
)
_AGAIN = "tools/tune_threshold.py RUN --force, with a RUN of tools/test.py --split val"


def threshold_file_of(checkpoint: str | Path) -> Path:
    """Path of the threshold file beside a checkpoint (file or folder)."""
    path = Path(checkpoint)
    stem = next((path.name.removesuffix(s) for s in _SUFFIXES if path.name.endswith(s)), path.name)
    return path.with_name(f"{stem}.threshold.json")


def model_sha256(model: Mapping[str, Any]) -> str:
    """Hash of the ``model`` section of a config, whatever the order of its keys."""
    text = json.dumps(model, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(model: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the ``model`` section of a config."""
    return model_sha256(model)[:16]


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold file.

    Attributes:
        path: where it lies.
        content: what it holds.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def threshold(self) -> float:
        """A pixel is vessel where probability >= threshold."""
        return self.content["threshold"]

    @property
    def postprocess(self) -> dict[str, Any] | None:
        """Keyword arguments of :class:`~.postprocess.PostProcess`, or None."""
        return self.content["postprocess"]

    def source(self) -> dict[str, Any]:
        """The ``threshold_source`` of metrics.json."""
        keys = ("metric", "beta", "average", "split", "split_name")
        return {
            "kind": "tuned",
            "file": self.path.name,
            **{key: self.content.get(key) for key in keys},
        }

    def check_weights(
        self, sha256: str | None, model: str, source: str, weights: str = "raw"
    ) -> list[str]:
        """Refuses other weights than those it was chosen for.

        Args:
            sha256: of the checkpoint; None for a model without one.
            model: digest of the config's model (:func:`model_digest`).
            source: the checkpoint's path, for messages.
            weights: which of the checkpoint's are meant, ``averaged`` or ``raw``.

        Returns:
            A warning where the config's model differs.

        Raises:
            CheckpointError: another checkpoint, its other weights, or without one another model.
        """
        own = self.content["checkpoint"]
        expected = None if own is None else own["sha256"]
        same_model = model == self.content["model"]
        if sha256 != expected or (sha256 is None and not same_model):
            theirs = "a model without checkpoint" if own is None else f"{own['file']}"
            theirs += f" (sha256 {expected[:16]})" if expected else ""
            ours = f"{source} (sha256 {sha256[:16]})" if sha256 else "no checkpoint"
            raise CheckpointError(
                found=f"{self.path} was chosen for {theirs}, and {ours} is tested",
                expected="the checkpoint that the threshold was chosen for, unchanged",
                fix=f"{_AGAIN}; or --threshold config for the threshold of the config",
            )
        tuned_for = (own or {}).get("weights", "raw")  # older files are of raw ones
        if tuned_for != weights:
            raise CheckpointError(
                found=f"{self.path} was chosen for the {tuned_for} weights of {source}, and the "
                f"{weights} ones are used",
                expected="a threshold of the weights that are used",
                fix=f"{_AGAIN}; or --threshold config for the threshold of the config",
            )
        if same_model:
            return []
        return [
            f"{self.path.name} was chosen with other settings of `model` than this config's; if "
            "they change the maps, tune again"
        ]

    def check_frames(
        self, dataset: VesselDataset, name: str, allow: bool | Sequence[str] = ()
    ) -> list[str]:
        """Refuses frames that the threshold was chosen on.

        Args:
            dataset: what is scored.
            name: of its split.
            allow: near-duplicates that may stay (``allow_near_duplicates`` of the config).

        Returns:
            Warnings.

        Raises:
            DataError: the same split; or a frame, a near-duplicate or a patient of it.
        """
        from ..datasets.hashes import split_hash
        from ..datasets.leakage import check_unseen

        fix = f"score other frames, or {_AGAIN}; --threshold config is free of this"
        if split_hash(dataset) == self.content["split"]:
            raise DataError(
                found=f"{self.path} was chosen on the very frames that are scored "
                f"(split {self.content['split'][:16]})",
                expected="frames that had no part in choosing the threshold",
                fix=fix,
            )
        try:
            found = check_unseen({name: dataset}, self.content["frames"], str(self.path), allow)
        except DataError as error:
            raise DataError(
                found=f"frames of {name} had a part in choosing the threshold of {self.path}: "
                f"{error.found}",
                expected="frames and patients that had no part in choosing the threshold",
                fix=fix,
            ) from error
        return [f"{self.path.name}: {text}" for text in found]


def read_threshold(path: str | Path) -> ChosenThreshold:
    """Reads a threshold file.

    Raises:
        ConfigError: there is none, or it is not one of this version's.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            found=f"the threshold file {path} cannot be read: {error}",
            expected="a file of tools/tune_threshold.py",
            fix=f"{_AGAIN}, or --threshold with a number",
        ) from error
    known = isinstance(content, dict) and content.get("format") == FORMAT
    missing = [key for key in _NEEDED if not known or key not in content]
    if missing or content["threshold_rule"] != THRESHOLD_RULE:
        raise ConfigError(
            found=f"{path} lacks {listing(missing)}" if known else f"{path} is no threshold file",
            expected=f"format {FORMAT!r}, rule {THRESHOLD_RULE!r}",
            fix=_AGAIN,
        )
    chosen = ChosenThreshold(path, content)
    PostProcess(**(chosen.postprocess or {})).check(chosen.threshold)
    return chosen


def write_threshold(
    path: Path,
    found: Curve,
    target: Target,
    *,
    about: Mapping[str, Any],
) -> ChosenThreshold:
    """Writes a threshold file, whole or not at all.

    Args:
        path: where.
        found: the curve with its choice.
        target: what was maximised.
        about: ``split``, ``split_name``, ``checkpoint``, ``model``, ``frames``, ``run`` and
            ``probabilities``.
    """
    choice = found.choice
    gain = None if found.gain is None else {"value": found.gain[0], "interval": found.gain[1]}
    content = strict(
        {
            "format": FORMAT,
            "threshold": choice.threshold,
            "threshold_rule": THRESHOLD_RULE,
            "postprocess": choice.postprocess.as_dict(),
            "metric": target.metric,
            "beta": target.beta if target.metric == "fbeta" else None,
            "average": target.average,
            "value": float(found.values[found.best]),
            "interval": found.interval(found.best),
            "threshold_interval": found.threshold_interval,
            "plateau": found.plateau,
            "gain_of_postprocessing": gain,
            "bootstrap": found.bootstrap,
            "notes": found.notes,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **about,
        }
    )
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(path, lambda file: file.write(f"{text}\n".encode()))
    return ChosenThreshold(path, content)
