"""mmengine's runner with checkpoints of ours: strict, atomic, safe to load, exact to resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.utils.data import DataLoader

from projects.sa2va.checkpoints import (
    AVERAGED,
    RAW,
    InitFrom,
    LoadReport,
    changed_frozen_state,
    check_resumable,
    load_parts,
    load_trained,
    pack_message_hub,
    provenance,
    read_checkpoint,
    read_initial,
    unpack_message_hub,
    write_atomically,
)
from projects.sa2va.models import parameter_table

from .bare import bare_model
from .divergence import check_weights
from .ema import weight_ema
from .memory import limit_memory
from .out_of_memory import explain_out_of_memory
from .stopping import keep_workers


class CheckpointsOfOurs:
    """What this runner and the one for DeepSpeed (zero.py) share."""

    load_report: LoadReport | None = None
    initial: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with explain_out_of_memory(self):
            super().__init__(*args, **kwargs)

    def build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Its workers outlive a signal that asks the run to stop: they start right after this."""
        loader = super().build_dataloader(*args, **kwargs)
        keep_workers(loader)
        return loader

    def train(self) -> Any:
        """Trains; memory that runs out is explained."""
        with explain_out_of_memory(self):
            return super().train()

    def test(self) -> Any:
        """Tests; memory that runs out is explained."""
        with explain_out_of_memory(self):
            return super().test()

    def report_initial(self, report: LoadReport, initial: dict[str, Any]) -> None:
        """Keeps and logs what was taken from another checkpoint (``init_from``)."""
        self.load_report, self.initial = report, initial
        self.logger.info(f"Weights by part\n{report.text()}")

    def trained_state(self) -> dict[str, Tensor]:
        """What was trained, whole and on the CPU; all processes take part.

        Where a strategy shards, only the first process has it.
        """
        return bare_model(self.model).trained_state_dict()

    def optimizer_state(self) -> dict[str, Any]:
        """State dict of the optimiser wrapper, as :meth:`trained_state`."""
        return self.optim_wrapper.state_dict()

    def averaged_state(self) -> dict[str, Tensor] | None:
        """Averaged weights, as :meth:`trained_state`; None where nothing is averaged."""
        hook = weight_ema(self)
        return None if hook is None else self.whole(hook.shadow)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU of tensors that lie as the trained weights do."""
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def changed_frozen(self) -> dict[str, Tensor]:
        """Frozen weights that a checkpoint replaced, on the CPU."""
        return changed_frozen_state(bare_model(self.model))

    def restore_progress(self, checkpoint: dict[str, Any]) -> None:
        """Schedule, log and position of a run that goes on."""
        if self.param_schedulers is not None:
            for scheduler, state in zip(
                self.param_schedulers, checkpoint["param_schedulers"], strict=True
            ):
                scheduler.load_state_dict(state)
        unpack_message_hub(self.message_hub, checkpoint["message_hub"])
        self.initial = checkpoint["meta"].get("init_from")
        if (hook := weight_ema(self)) is not None:
            hook.resume(checkpoint)
        self.train_loop._epoch = checkpoint["meta"]["epoch"]
        self.train_loop._iter = checkpoint["meta"]["iter"]
        self._has_loaded = True
        self.logger.info(f"Resuming after iteration {self.iter}")

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Writes what was trained, its training state and provenance as one file, atomically.

        All processes call it, and take part in gathering what is sharded; the first writes.
        """
        model = bare_model(self.model)
        trained, averaged = self.trained_state(), self.averaged_state()
        optimizer = self.optimizer_state() if save_optimizer else None
        if not is_main_process():
            return
        check_weights(trained)
        checkpoint: dict[str, Any] = {
            "meta": self._checkpoint_meta(meta, by_epoch),
            # What no run goes on from need not be kept in float32.
            "state_dict": trained if save_optimizer else model.rounded_for_prediction(trained),
        }
        if averaged is not None:
            checkpoint[AVERAGED] = (
                averaged if save_optimizer else model.rounded_for_prediction(averaged)
            )
            checkpoint["meta"][AVERAGED] = weight_ema(self).settings()
        if model.changed_frozen:
            checkpoint["changed_frozen"] = self.changed_frozen()
        if optimizer is not None:
            checkpoint["message_hub"] = pack_message_hub(self.message_hub)
            checkpoint["optimizer"] = apply_to(optimizer, torch.is_tensor, lambda x: x.cpu())
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = [
                _plain_scheduler_state(s.state_dict()) for s in self.param_schedulers
            ]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        write_atomically(checkpoint, Path(out_dir) / filename)

    def _checkpoint_meta(self, meta: dict[str, Any] | None, by_epoch: bool) -> dict[str, Any]:
        """Provenance and position of a checkpoint, plain types only."""
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        meta.update(
            provenance(bare_model(self.model), self.work_dir),
            cfg=self.cfg.pretty_text,
            seed=self.seed,
            experiment_name=self.experiment_name,
            world_size=self.world_size,
            time=time.strftime("%Y-%m-%dT%H:%M:%S"),
        )
        if self.initial is not None:
            meta["init_from"] = self.initial
        return meta

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        # before_run is the first moment at which the model is wrapped.
        if fn_name == "before_run":
            model = bare_model(self.model)
            if self.load_report is None:
                self.load_report = model.load_report()
                self.logger.info(f"Weights by part\n{self.load_report.text()}")
            self.logger.info(f"Parameters by part\n{parameter_table(model)}")
        super().call_hook(fn_name, **kwargs)

    def get_hooks_info(self) -> str:
        """The hooks on one line; mmengine lists them once for each of their sixty stages."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)


@RUNNERS.register_module()
class Sa2VARunner(CheckpointsOfOurs, Runner):
    """mmengine's Runner for one process, or several with DDP."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Also caps the memory, when the process has its card and no model yet."""
        super().setup_env(env_cfg)
        limit_memory(self.cfg.get("memory_budget_gib"))

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Builds, and takes the parts that ``init_from`` names, where a run begins."""
        built = super().build_model(model)
        init = InitFrom.from_config(self.cfg.get("init_from"))
        if init is not None and self._train_loop is not None and not self._resume:
            self.report_initial(*load_parts(built, read_initial(init), init))
        return built

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps in DDP where several processes train.

        Gradients are views into the buckets that DDP reduces: mmengine's default holds them twice.
        A test needs neither buckets nor weights that are sent around: all processes read the same.
        Its loop puts the model where it runs, once its checkpoint is loaded.
        """
        if self._train_loop is None:
            return model
        if self.distributed and model_wrapper_cfg is None:
            model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                "gradient_as_bucket_view": True,
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads trained weights strictly; see :func:`checkpoints.load_trained`.

        A test may ask for the raw ones; a run that starts from them takes the average, as all
        predictions do.
        """
        weights = self.test_loop.weights if self._train_loop is None else None
        checkpoint = read_checkpoint(filename)
        self.load_report = load_trained(bare_model(self.model), checkpoint, filename, weights)
        self.logger.info(self.load_report.text())
        self._has_loaded = True
        return checkpoint

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continues a run: weights, optimiser, schedulers, log and position.

        Raises:
            CheckpointError: the checkpoint holds no training state (a best_*.pth), or does not fit
                the model.
        """
        checkpoint = read_checkpoint(filename)
        check_resumable(checkpoint, filename)
        self.load_report = load_trained(bare_model(self.model), checkpoint, filename, RAW)
        self.logger.info(self.load_report.text())
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        self.restore_progress(checkpoint)


def _plain_scheduler_state(state: dict[str, Any]) -> dict[str, Any]:
    """Drops what is not data (bound methods), which a safe checkpoint cannot hold."""
    plain = (int, float, str, bool, list, tuple, dict, type(None))
    return {key: value for key, value in state.items() if isinstance(value, plain)}
