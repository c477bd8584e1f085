"""What a strategy spreads over cards, adds to them and moves to the host.

Sources: DeepSpeed 0.19.8, ``runtime/zero/stage_1_and_2.py`` (buckets, masters, partitions) and
``stage3.py`` (gathered weights); torch's DistributedDataParallel (buckets beside the gradients)
and ``fully_shard`` (a group gathered and the next one on its way).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects.sa2va.errors import ConfigError, suggest

from .sizes import ROOT

_FOLDER = ROOT / "configs" / "deepspeed"
_PLAIN = ("none", "ddp", "fsdp2")


@dataclass(frozen=True)
class Strategy:
    """How a step is spread over N processes.

    Attributes:
        name: as it was asked for.
        gpus: N.
        stage: ZeRO's stage; 0 without DeepSpeed.
        rounds: whether all weights are bfloat16 (DeepSpeed's bf16), trained ones with a float32
            master.
        offload_optimizer, offload_param: what waits in host memory.
        bucket: values of one bucket of gradients.
        buckets: how many of them there are (2 where communication overlaps).
        live: most values of weights that ZeRO-3 keeps gathered.
        prefetch: values that it gathers ahead.
    """

    name: str
    gpus: int = 1
    stage: int = 0
    rounds: bool = False
    offload_optimizer: bool = False
    offload_param: bool = False
    bucket: int = 0
    buckets: int = 1
    live: int = 0
    prefetch: int = 0

    @property
    def deepspeed(self) -> bool:
        return self.name not in _PLAIN

    @property
    def shards_weights(self) -> bool:
        return self.stage == 3 or self.name == "fsdp2"

    @property
    def shards_gradients(self) -> bool:
        return self.stage >= 2 or self.name == "fsdp2"

    @property
    def shards_states(self) -> bool:
        return self.stage >= 1 or self.name == "fsdp2"

    def share(self, size: float, of: bool = True) -> int:
        """A process's part of ``size``, all of it unless ``of``."""
        return -(-int(size) // self.gpus) if of else int(size)


def resolve_strategy(cfg: Mapping[str, Any], name: str | None, gpus: int) -> Strategy:
    """The strategy that is asked for, or the config's.

    Args:
        cfg: a config; a dumped one of a DeepSpeed run has its ``strategy``.
        name: see :class:`~projects.sa2va.planning.request.Request`.
        gpus: number of processes.

    Raises:
        ConfigError: unknown, no JSON, or one process of what takes several.
    """
    if gpus < 1:
        raise ConfigError(found=f"--gpus {gpus}", expected="at least 1", fix="correct --gpus")
    own = (cfg.get("strategy") or {}).get("config")
    if name is None and own is not None:
        return _of_deepspeed("that of the config", own, gpus, cfg)
    if name is None and cfg.get("runner_type") == "Sa2VAShardedRunner":
        name = "fsdp2"
    if name is None:
        name = "ddp" if gpus > 1 else "none"
    if name in _PLAIN:
        if name == "none" and gpus > 1:
            raise ConfigError(
                found=f"--strategy none with --gpus {gpus}",
                expected="a strategy of several processes",
                fix="--strategy ddp, fsdp2 or one of configs/deepspeed; or --gpus 1",
            )
        return Strategy(name, gpus)
    return _of_deepspeed(name, _read(name), gpus, cfg)


def strategy_names() -> list[str]:
    """The names that :func:`resolve_strategy` knows."""
    return [*_PLAIN, *(path.stem for path in sorted(_FOLDER.glob("*.json")))]


def _read(name: str) -> dict[str, Any]:
    files = {path.stem: path for path in _FOLDER.glob("*.json")}
    short = {stem.removeprefix("deepspeed_"): path for stem, path in files.items()}
    path = files.get(name) or short.get(name) or Path(name)
    if not path.is_file():
        known = [*_PLAIN, *sorted(short)]
        raise ConfigError(
            found=f"--strategy {name}" + suggest(name, known),
            expected="one of " + ", ".join(known) + ", or a DeepSpeed JSON file",
            fix="correct the name",
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            found=f"{path} is no JSON: {error}",
            expected="a DeepSpeed configuration",
            fix="start from one of configs/deepspeed",
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(
            found=f"{path} holds {type(settings).__name__}",
            expected="a DeepSpeed configuration: an object",
            fix="start from one of configs/deepspeed",
        )
    return settings


def _of_deepspeed(
    name: str, settings: Mapping[str, Any], gpus: int, cfg: Mapping[str, Any]
) -> Strategy:
    zero = settings.get("zero_optimization") or {}
    stage = int(zero.get("stage", 0))
    bf16 = (settings.get("bf16") or {}).get("enabled", False)
    if bf16 == "auto":  # as engine/start.py sets it
        bf16 = cfg["model"].get("autocast") == "bfloat16"

    def value(key: str, default: float) -> int:
        given = zero.get(key, zero.get(f"stage3_{key}", default))
        return int(default if given == "auto" else given)

    return Strategy(
        name=name,
        gpus=gpus,
        stage=stage,
        rounds=bool(bf16),
        offload_optimizer=_on_host(zero, "offload_optimizer"),
        offload_param=stage == 3 and _on_host(zero, "offload_param"),
        bucket=value("reduce_bucket_size", 5e8),
        # Stage 3 has one bucket whatever overlaps.
        buckets=2 if zero.get("overlap_comm") and stage < 3 else 1,
        live=value("max_live_parameters", 1e9),
        prefetch=value("prefetch_bucket_size", 5e7),
    )


def _on_host(zero: Mapping[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") == "cpu"
