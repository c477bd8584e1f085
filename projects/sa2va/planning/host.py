"""Host memory of a process and of a machine.

Not traced: formulas over what the model holds. Pages of mapped weight files, which the system
takes back when it wants them, are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .holdings import Holdings, averages
from .section import GIB, Item, Section
from .strategies import Strategy

_PROCESS = int(1.0 * GIB)  # Python, torch, transformers; benchmarks/README.md, 2b load
_WORKER = int(0.2 * GIB)  # a data worker's own pages beside those it shares with its parent


def host_items(cfg: Mapping[str, Any], held: Holdings | None, strategy: Strategy) -> Section:
    """What a process takes of the host, in training where the config trains.

    Args:
        cfg: the config.
        held: of training; None where the config only tests.
        strategy: how it trains.
    """
    items = [Item("host", "Python and libraries (assumed)", _PROCESS)]
    mllm = cfg["model"]["mllm"]
    drawn = mllm.get("pretrained") is None and cfg["model"].get("pretrained") is None
    if held is not None and drawn and mllm.get("init_device", "cpu") == "cpu":
        items.append(Item("host", "random weights while they are drawn", held.weights))
    workers = 0
    for name in ("train", "val") if held is not None else ("test",):
        workers += (cfg.get(f"{name}_dataloader") or {}).get("num_workers", 0)
    if workers:
        items.append(Item("host", f"{workers} data workers (assumed)", workers * _WORKER))
    if held is None:
        return Section("host", items)
    items.append(Item("host", "trained weights while a checkpoint is written", 4 * held.values))
    if averages(cfg):
        items.append(
            Item("host", "averaged weights while a checkpoint is written", 4 * held.values)
        )
    if strategy.offload_optimizer:
        for name, size in (
            ("optimiser states, pinned", held.states),
            ("float32 masters, pinned", 4 * held.values),
            ("gradients, pinned", 4 * held.values),
        ):
            items.append(Item("host", name, strategy.share(size)))
    if strategy.offload_param:
        items.append(Item("host", "weights, pinned", strategy.share(held.weights)))
    return Section("host", items)
