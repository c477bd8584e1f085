"""Where a model runs for prediction, decided before anything is loaded.

What is decided follows from plain numbers (:func:`decide`): bytes of the model's units, free bytes
of the cards, host memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from mmengine.device import get_device

from projects.sa2va.errors import ConfigError, MemoryFullError, SetupError, suggest
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.planning import Card
from projects.sa2va.planning.section import GIB

from .costs import Costs, costs_of
from .partition import shard, spill
from .precision import Precision, parse_precision

KINDS = ("auto", "single", "sharded", "data-parallel", "cpu")
_SMALLER = "--precision llm=nf4 (or int8) for smaller weights"


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and why.

    Attributes:
        kind: ``single``, ``sharded``, ``data-parallel`` or ``cpu``; ``auto`` in a config only.
        gpus: cards that were asked for; None: those that there are.
        memory_gib: memory of a card that was asked for; None: what is free.
        devices: torch devices that compute; the first one gets the batches.
        units: of a sharded model, the device that computes each unit.
        waiting: of these, the units whose weights wait on the ``host`` or on ``disk``.
        reason: one sentence.
    """

    kind: str = "single"
    gpus: int | None = None
    memory_gib: float | None = None
    devices: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def main(self) -> str:
        """The device that gets the batches."""
        return self.devices[0]

    def home(self, unit: str) -> str:
        """Device on which the weights of a unit are kept between calls; the disk is the host's."""
        return "cpu" if unit in self.waiting else self.units[unit]

    def describe(self) -> str:
        """Kind, devices and reason, in a line."""
        text = f"{self.kind} on {', '.join(self.devices)}" if self.kind != "cpu" else "the CPU"
        if self.units:
            each = Counter(self.units.values())
            text = "sharded: " + ", ".join(f"{each[d]} units on {d}" for d in self.devices)
        for place, count in sorted(Counter(self.waiting.values()).items()):
            text += f", the weights of {count} of them on {place}"
        return f"{text} ({self.reason})"

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "kind": self.kind,
            "devices": list(self.devices),
            "waiting": dict(Counter(self.waiting.values())),
            "reason": self.reason,
        }

    def as_config(self) -> dict[str, Any]:
        """For ``test_cfg.placement``; :meth:`from_config` reads it."""
        plain = asdict(self)
        return {**plain, "devices": list(self.devices), "units": dict(self.units)}

    @classmethod
    def from_config(cls, value: str | Mapping[str, Any] | None) -> Placement:
        """What ``test_cfg.placement`` says: a kind, or a dict of this class's fields."""
        if isinstance(value, Mapping):
            return replace(cls(**value), devices=tuple(value.get("devices") or ()))
        return cls(kind=value or "single")


def choose_placement(
    cfg: Mapping[str, Any],
    kind: str = "auto",
    *,
    device: str = "auto",
    gpus: int | None = None,
    memory_gib: float | None = None,
    precision: Precision | None = None,
) -> Placement:
    """Decides where a config's model predicts; nothing is loaded or put on a card.

    Args:
        cfg: a checked config, changed by ``precision.before_build``.
        kind: ``single``, ``sharded``, ``data-parallel``, ``cpu``, or ``auto``: one card if the
            model fits, each of several cards if ``gpus`` asks for them and it fits each, else
            spread over them; the CPU where there is no card.
        device: ``auto``, ``cpu``, ``cuda``, or one card, ``cuda:1``.
        gpus: cards (of ``data-parallel``: processes); None: all there are, or one.
        memory_gib: the number printed on a card, where less than what is free shall be used; on
            a machine without a card, GiB of host memory.
        precision: of each part; as the config says where None.

    Raises:
        ConfigError: an unknown kind, or a model that cannot be spread.
        SetupError: cards that are not there.
        MemoryFullError: it does not fit.
    """
    precision = precision or parse_precision(None)
    _check(kind, device, gpus)
    asked = Placement(kind=kind, gpus=gpus, memory_gib=memory_gib)
    if kind == "cpu" or device == "cpu":
        return replace(asked, kind="cpu", devices=("cpu",), reason="as asked for")
    names = [device] if ":" in device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if gpus is not None and names and gpus > len(names):
        raise SetupError(
            found=f"--gpus {gpus} and {len(names)} card(s)",
            expected="as many cards as there are",
            fix=f"--gpus {len(names)}, or set CUDA_VISIBLE_DEVICES",
        )
    planned = cfg["model"]["type"] == Sa2VAModel.__name__
    if kind == "sharded" and not planned:
        raise ConfigError(
            found=f"--placement sharded and model.type={cfg['model']['type']!r}",
            expected=f"a {Sa2VAModel.__name__}: others are small enough for one card",
            fix="--placement single or cpu",
        )
    if kind == "data-parallel":
        return _each(asked, gpus or len(names))
    own = device if ":" in device else get_device()
    if kind == "single" or not planned:
        reason = "as asked for" if kind == "single" else "a small model"
        return _one(asked, own, reason if own != "cpu" else "no card")
    if kind == "auto" and not names:
        return _one(asked, "cpu", "no card")
    costs = costs_of(cfg, precision)
    budget = cfg.get("memory_budget_gib")
    if not names:
        host = host_bytes() if memory_gib is None else int(memory_gib * GIB)
        return decide(asked, costs, ("cpu",), (host,), 0)
    names = names[:gpus]
    free = [_usable(free_bytes(name), memory_gib, budget) for name in names]
    return decide(asked, costs, names, free, host_bytes())


def decide(
    asked: Placement, costs: Costs, devices: Sequence[str], free: Sequence[int], host: int
) -> Placement:
    """``auto`` or ``sharded``, by numbers alone.

    Args:
        asked: with ``kind`` and ``gpus``.
        costs: of the model.
        devices: that may be used.
        free: bytes of each.
        host: bytes of host memory for weights that wait there.

    Raises:
        MemoryFullError: it does not fit.
    """
    sizes = f"{_gib(costs.single)}, free are {', '.join(map(_gib, free))}"
    fitting = [name for name, bytes_ in zip(devices, free, strict=True) if costs.single <= bytes_]
    if asked.kind == "auto" and asked.gpus is not None and asked.gpus > 1:
        if len(fitting) == len(devices):
            return replace(
                asked, kind="data-parallel", devices=(get_device(),), reason=f"planned {sizes}"
            )
    elif asked.kind == "auto" and fitting:
        return _one(asked, fitting[0], f"planned {sizes}")
    shards = shard(costs.units, free, wait=asked.kind == "sharded")
    if shards is None:
        raise _too_large(asked, costs, devices, free)
    names = [unit.name for unit in costs.units]
    loads = ", ".join(f"{_gib(n)} of {_gib(f)}" for n, f in zip(shards.loads, free, strict=True))
    used = [devices[number] for number in dict.fromkeys(shards.device)]
    return replace(
        asked,
        kind="sharded",
        devices=tuple(used),
        units={n: devices[d] for n, d in zip(names, shards.device, strict=True)},
        waiting=spill(costs.units, shards.waiting, host),
        reason=f"planned {loads}",
    )


def _too_large(
    asked: Placement, costs: Costs, devices: Sequence[str], free: Sequence[int]
) -> MemoryFullError:
    what = f"a prediction that takes {_gib(costs.single)}"
    where = ", ".join(f"{name} with {_gib(f)} free" for name, f in zip(devices, free, strict=True))
    if asked.kind == "sharded":
        largest = max(costs.units, key=lambda u: u.passing + u.weights)
        return MemoryFullError(
            found=f"{what}, and {where}",
            expected=f"room for the largest part and what it computes: {largest.name}, "
            f"{_gib(largest.weights + largest.passing)}",
            fix=f"test_dataloader.batch_size=1, {_SMALLER}, or --placement cpu",
        )
    return MemoryFullError(
        found=f"{what}, and {where}",
        expected="cards that hold it together",
        fix=f"{_SMALLER}; more cards (--gpus); --placement sharded, which keeps on the host "
        "what does not fit (slow); or --placement cpu",
    )


def _check(kind: str, device: str, gpus: int | None) -> None:
    if kind not in KINDS:
        raise ConfigError(
            found=f"placement {kind!r}" + suggest(str(kind), KINDS),
            expected="one of " + ", ".join(KINDS),
            fix="correct --placement or test_cfg.placement",
        )
    if gpus is not None and gpus < 1:
        raise ConfigError(found=f"--gpus {gpus}", expected="at least 1", fix="--gpus 1")
    known = device in ("auto", "cpu", "cuda") or (
        device.startswith("cuda:") and device[5:].isdigit()
    )
    if not known or (
        device.startswith("cuda") and not _has(int(device[5:]) if ":" in device else 0)
    ):
        raise SetupError(
            found=f"device {device!r} on a machine with {torch.cuda.device_count()} card(s)",
            expected="auto, cpu, or a card that is there: cuda, cuda:0 ...",
            fix="leave the device out, or set CUDA_VISIBLE_DEVICES",
        )


def _has(number: int) -> bool:
    return number < torch.cuda.device_count()


def _one(asked: Placement, device: str, reason: str) -> Placement:
    kind = "cpu" if device == "cpu" else "single"
    return replace(asked, kind=kind, devices=(device,), reason=reason)


def _each(asked: Placement, count: int) -> Placement:
    if count < 1:
        raise SetupError(
            found="--placement data-parallel and no card",
            expected="cards, or a number of processes on the CPU",
            fix="--gpus 2",
        )
    reason = f"as asked for, {count} process(es) on this machine"
    return replace(asked, gpus=count, devices=(get_device(),), reason=reason)


def free_bytes(device: str) -> int:
    """Free bytes of a card, without what CUDA itself takes, which it has taken after this call."""
    return torch.cuda.mem_get_info(device)[0]


def host_bytes() -> int:
    """Host memory that is available, in bytes."""
    import psutil

    return psutil.virtual_memory().available


def _usable(free: int, memory_gib: float | None, budget_gib: float | None) -> int:
    """Bytes of a card that a process may take."""
    caps = [] if budget_gib is None else [budget_gib]
    if memory_gib is not None:
        caps.append(Card(memory_gib, budget_gib).usable_gib)
    return min([free, *(int(cap * GIB) for cap in caps)])


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
