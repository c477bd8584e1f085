"""FSDP2: weights, gradients and optimiser states spread over the cards by torch's fully_shard.

Source: Zhao et al., 2023 (PyTorch FSDP), in its second form: torch.distributed.fsdp.fully_shard
and what torchtitan does with it. Blocks of the language model and of both image encoders, and the
two tables of the vocabulary, are gathered one at a time; the rest (projectors, mask decoder, token
rows) is one group, gathered for the whole step.

Trained parameters stay float32 and frozen ones bfloat16, side by side in a group: torch gathers
both as bytes, and asks for one dtype among those that train only. Autocast casts, as without FSDP,
so the losses are those of DDP but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from projects.sa2va.checkpoints import (
    RAW,
    changed_frozen_state,
    check_resumable,
    load_trained,
    read_checkpoint,
)
from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.models import Sa2VAModel, part_of
from projects.sa2va.models.trained import trained_parameters

from .optim import refuse_sharded
from .runner import Sa2VARunner
from .shards import full_tensor, shard_like

_ENCODERS = ("MLLM vision encoder", "SAM2 image encoder")
_TABLES = ("MLLM embeddings", "MLLM head")


def choose_strategy(
    cfg: Config, strategy: str | None, deepspeed: str | None, distributed: bool
) -> None:
    """Sets the runner of ``--strategy``, and refuses what FSDP2 cannot train.

    Args:
        cfg: config of a training run.
        strategy: ``ddp``, ``fsdp2``, or None for what the config says (one that a run dumped).
        deepspeed: ``--deepspeed``, if it was given.
        distributed: whether a launcher starts several processes.

    Raises:
        ConfigError: two strategies at once, 4-bit weights, an optimiser that knows no shards.
        SetupError: FSDP2 without a launcher.
    """
    if strategy is not None and (deepspeed is not None or cfg.get("strategy") is not None):
        raise ConfigError(
            found=f"--strategy {strategy} together with "
            + (f"--deepspeed {deepspeed}" if deepspeed else "a config that a DeepSpeed run wrote"),
            expected="one of them: DeepSpeed is a strategy itself",
            fix="remove --strategy, or go without --deepspeed and from the config in "
            "projects/sa2va/configs",
        )
    runners = {"ddp": Sa2VARunner.__name__, "fsdp2": Sa2VAShardedRunner.__name__}
    if strategy is not None:
        cfg.runner_type = runners[strategy]
    if deepspeed is not None or cfg.get("runner_type") != runners["fsdp2"]:
        return
    if not distributed:
        raise SetupError(
            found="FSDP2 without a launcher",
            expected="processes started by torchrun, also for one card",
            fix="STRATEGY=fsdp2 bash tools/dist.sh train <config> <number of cards>",
        )
    quantization = cfg.model.get("mllm", {}).get("quantization")
    if quantization is not None:
        raise ConfigError(
            found=f"FSDP2 and model.mllm.quantization={quantization!r}",
            expected="weights in their own precision: FSDP2 cannot shard 4-bit ones",
            fix="set model.mllm.quantization=None, or train with DDP (without --strategy): 4-bit "
            "weights fit one card",
        )
    refuse_sharded(cfg.optim_wrapper.optimizer, "FSDP2")


def shard(model: Sa2VAModel, mesh: DeviceMesh) -> None:
    """Spreads ``model`` over the processes of ``mesh``, in place, a group at a time.

    The model may lie on the CPU: a card then never holds more than its shards and one group.

    Args:
        model: built and loaded, the same in all processes.
        mesh: one dimension, on the device of the run.
    """
    from transformers import GenerationMixin

    for name, module in list(_groups(model)):
        fully_shard(module, mesh=mesh)
        if not _is_passed_backward(model, part_of(f"{name}.")):
            # Or the backward pass would gather it ahead of time for nothing: 1 GiB of embedding.
            module.set_unshard_in_backward(False)
    # True: after a prediction too, so that parameters are shards whenever no forward pass runs.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            # Processes whose answer is complete go on until all are: each step gathers weights.
            module._is_fsdp_managed_module = True


def _groups(model: Sa2VAModel) -> Iterator[tuple[str, nn.Module]]:
    """Named modules that are gathered by themselves: blocks, and frozen tables."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    users: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[parameter] = users.get(parameter, 0) + 1
    for name, module in model.named_modules():
        part = part_of(f"{name}.")
        if isinstance(module, GradientCheckpointingLayer):
            # The mask decoder has such blocks too, each too small to be worth a collective.
            if part in (*_ENCODERS, "MLLM language model"):
                yield name, module
        elif part in _TABLES and isinstance(module, (nn.Embedding, nn.Linear)):
            if users[module.weight] > 1:
                continue  # a tied table: a group of its own would know only one of its users
            yield name, module


def _is_passed_backward(model: Sa2VAModel, part: str) -> bool:
    """Whether gradients pass through ``part``: always but for frozen ones that see data first."""
    if part not in (*_ENCODERS, "MLLM embeddings"):
        return True
    return any(part_of(name) == part for name in trained_parameters(model))


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; all processes take part, only the first one has the result.

    One tensor at a time, so that a card never holds more than one of them whole.
    """
    whole = {name: _first_keeps(tensor) for name, tensor in tensors.items()}
    return whole if is_main_process() else {}


def spread(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state dict of an optimiser with whole tensors, with this process's shards of them.

    Args:
        state: as :meth:`Sa2VAShardedRunner.optimizer_state` gave it, in any number of processes.
        optimizer: over the sharded parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {
        index: {key: shard_like(value, parameters[index]) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": shards}


def _first_keeps(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU of the first process, an empty one elsewhere."""
    whole = full_tensor(tensor)
    return whole.cpu().clone() if is_main_process() else whole.new_empty(0, device="cpu")


@RUNNERS.register_module()
class Sa2VAShardedRunner(Sa2VARunner):
    """mmengine's Runner with FSDP2. Checkpoints are those of DDP and of one process.

    Gradients are reduced in every iteration, also while they are accumulated: few parameters train,
    so that is little beside the weights that an iteration gathers, and only shards of them stay.
    """

    def wrap_model(self, model_wrapper_cfg: dict | None, model: Sa2VAModel) -> Sa2VAModel:
        """Loads the weights that the run starts from, then shards."""
        self._changed_frozen: dict[str, Tensor] = {}
        self._checkpoint: dict[str, Any] | None = None
        if self._load_from is not None:
            self._checkpoint = read_checkpoint(self._load_from)
            weights = RAW if self._resume else None
            self.load_report = load_trained(model, self._checkpoint, self._load_from, weights)
            if is_main_process():
                self._changed_frozen = changed_frozen_state(model)
        device = torch.device(get_device())
        model.data_preprocessor.to(device)
        shard(model, init_device_mesh(device.type, (self.world_size,)))
        return model

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Its norm of the gradients is that of all shards, also in the log."""
        built = super().build_optim_wrapper(optim_wrapper)
        clip = getattr(built, "clip_func", None)

        def clip_all(*args: Any, **kwargs: Any) -> Tensor | None:
            norm = clip(*args, **kwargs)
            return None if norm is None else full_tensor(norm)

        if clip is not None:
            built.clip_func = clip_all
        return built

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Reports the weights, which were loaded before sharding."""
        self.logger.info(self.load_report.text())
        self._checkpoint = None
        self._has_loaded = True

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continues a run of any strategy; see :meth:`Sa2VARunner.resume`."""
        checkpoint = self._checkpoint  # read once, for the weights
        check_resumable(checkpoint, filename)
        self.load_checkpoint(filename)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        shards = spread(checkpoint["optimizer"], self.optim_wrapper.optimizer)
        self.optim_wrapper.load_state_dict(shards)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        self.restore_progress(checkpoint)

    def trained_state(self) -> dict[str, Tensor]:
        """What was trained, gathered."""
        return self.whole(trained_parameters(self.model))

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gathered; only the first process has the result."""
        return gather(tensors)

    def optimizer_state(self) -> dict[str, Any]:
        """State dict of the optimiser wrapper, gathered."""
        return apply_to(self.optim_wrapper.state_dict(), torch.is_tensor, _first_keeps)

    def changed_frozen(self) -> dict[str, Tensor]:
        """Frozen weights that a checkpoint replaced, as they were loaded."""
        return self._changed_frozen

    def _init_model_weights(self) -> None:
        """Does nothing: mmengine would send whole weights, which are the same in all processes."""
