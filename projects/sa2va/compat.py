"""Every shim for a library, in one place: what it mends, and when it can go.

:func:`apply` runs once, when ``projects.sa2va`` is imported, before any of these libraries is used.
The pins in ``pins.py`` are the versions that the shims were seen to work with.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import shlex
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch

from .errors import SetupError

_KEEP_ALIVE: list[Any] = []  # torch.library definitions vanish with their Library object


def apply() -> None:
    """Applies every shim. Safe to call twice."""
    if _KEEP_ALIVE:
        return
    _KEEP_ALIVE.append(True)
    _force_weights_only()
    _torchao_talks_at_every_start()
    _torchvision_without_its_extension()
    _transformers_name_that_xtuner_imports()
    _cpu_distributed()
    _configs_formatted_once()
    _deepspeed_optimizers_of_mmengine()
    _peft_token_rows_without_cuda()
    _peft_token_rows_without_copies()
    _locks_of_killed_compilers()


def _force_weights_only() -> None:
    """No pickle of a checkpoint is ever executed, not even by DeepSpeed.

    DeepSpeed 0.19.8 passes ``weights_only=False`` in its own loaders. torch's own switch overrules
    that for the whole process. The classes that DeepSpeed writes into ZeRO checkpoints are let in
    one by one in ``checkpoints/deepspeed_folder.py``. Can go when DeepSpeed loads safely by itself.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def _torchao_talks_at_every_start() -> None:
    """torchao 0.18.0 warns when peft imports it: of compiled operators that this build of torch
    cannot load, and of an enumeration that torch 2.13 registers by itself.

    Prediction in int8 needs neither (models/quantization.py); all other warnings stay. Can go with
    the next torchao.
    """

    def needed(record: logging.LogRecord) -> bool:
        if record.name == "torchao":
            return not str(record.msg).startswith(("Failed to load", "Skipping import of cpp"))
        about = record.args[0] if isinstance(record.args, tuple) and record.args else None
        return not getattr(about, "__module__", "").startswith("torchao.")

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(needed)


def _torchvision_without_its_extension() -> None:
    """torchvision is published as a CUDA build only; beside a CPU build of torch its C++ ops fail.

    ``import torchvision`` then dies on the fake kernels of ``nms`` and ``qnms``, because their
    schemas are missing. Defining the schemas is enough for transforms, which is all we use. Can
    go when torchvision has a CPU build where torch has one.
    """
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    schemas = {
        "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    for name, schema in schemas.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    _KEEP_ALIVE.append(library)


def _transformers_name_that_xtuner_imports() -> None:
    """xtuner 0.2.0 imports a helper that transformers 5 dropped. Can go with the next xtuner."""
    import transformers.utils

    if not hasattr(transformers.utils, "is_safetensors_available"):
        transformers.utils.is_safetensors_available = lambda: True


def _cpu_distributed() -> None:
    """mmengine and xtuner reach for CUDA in process groups on machines that have none.

    mmengine calls ``torch.cuda.set_device`` for every launcher and hands ``device_ids`` to DDP;
    xtuner asks ``torch.cpu.is_bf16_supported``. Can go when they ask the accelerator first.
    """
    if torch.cuda.is_available():
        return
    torch.cuda.set_device = lambda *args, **kwargs: None
    if not hasattr(torch.cpu, "is_bf16_supported"):
        torch.cpu.is_bf16_supported = lambda: True
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

    from torch.nn.parallel import DistributedDataParallel

    original = DistributedDataParallel.__init__

    def without_device_ids(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_ids", None)
        kwargs.pop("output_device", None)
        original(self, module, **kwargs)

    DistributedDataParallel.__init__ = without_device_ids


def _configs_formatted_once() -> None:
    """mmengine 0.10.7 formats a config anew whenever its text is asked for.

    yapf takes half a second for it, seven times in a short training: for the log, the work dir, the
    message hub and each checkpoint. Can go when mmengine keeps the text.
    """
    from mmengine.config import config

    original = config.FormatCode

    @functools.lru_cache(maxsize=4)
    def formatted(text: str, style: tuple[tuple[str, Any], ...]) -> tuple[str, bool]:
        return original(text, style_config=dict(style))

    def format_code(text: str, style_config: dict[str, Any]) -> tuple[str, bool]:
        return formatted(text, tuple(style_config.items()))

    config.FormatCode = format_code


def _deepspeed_optimizers_of_mmengine() -> None:
    """mmengine 0.10.7 imports optimisers that DeepSpeed >= 0.19.7 moved. Can go with mmengine 0.11.

    The module is replaced by one with the three names, so that mmengine's import works; using one
    of those optimisers is an error that says so.
    """
    name = "deepspeed.runtime.fp16.onebit"
    if name in sys.modules:
        return
    module = types.ModuleType(name)
    for optimizer in ("OnebitAdam", "OnebitLamb", "ZeroOneAdam"):
        setattr(module, optimizer, type(optimizer, (_RemovedOptimizer,), {}))
    sys.modules[name] = module


class _RemovedOptimizer(torch.optim.Optimizer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} is not in this version of DeepSpeed; use AdamW"
        )


def _peft_token_rows_without_cuda() -> None:
    """peft 0.21.2 collects token rows under ZeRO-3 on a CUDA device, whether there is one or not.

    Gathering the table and copying the rows does the same on every machine. Can go when peft asks
    for the accelerator.
    """
    from peft.tuners.trainable_tokens import layer

    def collect(self: Any, weight: torch.Tensor, rows: list[int], embed_dim: int) -> torch.Tensor:
        with layer.gather_params_ctx([weight], modifier_rank=None):
            return weight[rows].clone()

    layer.TrainableTokensLayer._collect_token_weights = collect


def _peft_token_rows_without_copies() -> None:
    """peft 0.21.2 writes the trained rows into a copy of the whole table in every forward pass.

    At 8B that is 1.1 GiB for the embedding and for the head, and as much again for the gradient of
    the copy. Here the frozen table is used as it is, and the rows are put into its result. Can go
    when peft does so.
    """
    from peft.tuners.trainable_tokens import layer

    original = layer.TrainableTokensLayer.forward_adapters

    def forward_adapters(
        self: Any, x: torch.Tensor, active_adapters: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        known = isinstance(self.base_layer, (torch.nn.Embedding, torch.nn.Linear))
        if self.disable_adapters or not active_adapters or self.merged or not known:
            return original(self, x, active_adapters, *args, **kwargs)
        self._check_overlapping_tokens(active_adapters)
        result = self.base_layer(x, *args, **kwargs)
        for name in active_adapters:
            ids = torch.tensor(self.token_indices[name], device=x.device)
            rows = self.trainable_tokens_delta[name].to(self.base_layer.weight.dtype)
            if isinstance(self.base_layer, torch.nn.Linear):
                own = torch.nn.functional.linear(x, rows)
                result = result.index_copy(-1, ids, own.to(result.dtype))
                continue
            scale = self._get_embed_scale()
            rows = rows if scale is None else rows * scale.to(rows.dtype)
            match = x.unsqueeze(-1) == ids
            own = rows[match.int().argmax(-1)].to(result.dtype)
            result = torch.where(match.any(-1, keepdim=True), own, result)
        return result

    layer.TrainableTokensLayer.forward_adapters = forward_adapters


_LIVE_S = 300.0  # a compiler that writes nothing for so long is no longer at work


def _locks_of_killed_compilers() -> None:
    """torch 2.13 waits for ever for the compiler of a start that was killed.

    Whatever compiles at run time, as DeepSpeed's operators do, holds a file ``lock`` in the folder
    of the build. A killed process leaves it there. Can go when torch locks files with the kernel's
    locks, which end with the process.
    """
    from torch.utils.file_baton import FileBaton

    FileBaton.wait = _wait_for_compiler


def _wait_for_compiler(baton: Any) -> None:
    """Waits while somebody compiles, on this machine or on another one with the same folder.

    Raises:
        SetupError: nobody does.
    """
    from mmengine.logging import print_log

    lock, alive, said = Path(baton.lock_file_path), -math.inf, False
    while lock.exists():
        if time.time() - alive > _LIVE_S:
            alive = time.time() if _is_open(lock) else _last_write(lock.parent)
        idle = time.time() - alive
        if idle > _LIVE_S:
            raise SetupError(
                found=f"{lock}: no process of this machine has it open, and nothing was written "
                f"beside it for {idle / 60:.0f} min",
                expected="a lock that goes when its compiler is done; a killed start leaves it",
                fix=f"rm {shlex.quote(str(lock))}",
            )
        if not said:
            text = f"waiting for {lock}: another process compiles this operator"
            print_log(text, logger="current")
            said = True
        time.sleep(baton.wait_seconds)


def _is_open(path: Path) -> bool:
    import psutil

    own = str(path.resolve())
    processes = psutil.process_iter(["open_files"])  # None: of another user, not to be seen
    return any(own == file.path for p in processes for file in p.info["open_files"] or ())


def _last_write(folder: Path) -> float:
    newest = folder.stat().st_mtime
    for path in folder.iterdir():
        try:
            newest = max(newest, path.stat().st_mtime)
        except FileNotFoundError:  # compilers remove files of their own
            continue
    return newest
