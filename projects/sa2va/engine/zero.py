"""DeepSpeed ZeRO: xtuner's strategy and mmengine's FlexibleRunner, with checkpoints of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.registry import RUNNERS, STRATEGIES
from mmengine.runner._flexible_runner import FlexibleRunner
from torch import nn
from xtuner.engine import DeepSpeedStrategy

from projects.sa2va.checkpoints import (
    LoadReport,
    allow_deepspeed_classes,
    check_shards,
    load_trained,
    pack_message_hub,
    read_checkpoint,
    unpack_message_hub,
    write_atomically,
)
from projects.sa2va.errors import CheckpointError, listing
from projects.sa2va.models import Sa2VAModel

from .folders import remove_on_first, replace_folder, sync_tree
from .memory import limit_memory
from .runner import CheckpointsOfOurs


@STRATEGIES.register_module()
class Sa2VADeepSpeedStrategy(DeepSpeedStrategy):
    """ZeRO-1/2/3 with the trained parts in checkpoints, written atomically.

    Every process builds the whole model from the same seed or files, and DeepSpeed shards it
    afterwards. (Built under ZeRO-3's own initialisation, random weights would differ from those of
    a run without it.)

    Args:
        config: DeepSpeed's configuration.
        load_trained_from: checkpoint whose trained weights the model starts from. They are loaded
            before sharding, so that DeepSpeed's float32 masters begin with them.
        kwargs: those of xtuner's strategy.
    """

    def __init__(
        self, config: ConfigDict | dict, load_trained_from: str | None = None, **kwargs: Any
    ) -> None:
        # DeepSpeed stores its config in checkpoints, which must hold plain types only.
        plain = config.to_dict() if isinstance(config, ConfigDict) else config
        super().__init__(config=plain, **kwargs)
        self.load_trained_from = load_trained_from
        self.load_report: LoadReport | None = None

    def _setup_distributed(
        self, launcher: str | None = None, backend: str | None = None, **kwargs: Any
    ) -> None:
        backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        super()._setup_distributed(launcher, backend=backend, **kwargs)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Builds the whole model, unsharded, and loads the weights it starts from."""
        from transformers.integrations.deepspeed import (
            HfDeepSpeedConfig,
            unset_hf_deepspeed_config,
        )

        unset_hf_deepspeed_config()
        built = super().build_model(model)
        if self.load_trained_from is not None:
            checkpoint = read_checkpoint(self.load_trained_from)
            self.load_report = load_trained(built, checkpoint, self.load_trained_from)
            _refuse_changed_frozen(built, self.load_trained_from)
        self.hf_deepspeed_config = HfDeepSpeedConfig(self.config)
        return built

    def resume(self, filename: str, **kwargs: Any) -> dict[str, Any]:
        """Loads weights, optimiser and schedulers from a folder of shards.

        Raises:
            CheckpointError: not such a folder, or written by another number of processes.
        """
        allow_deepspeed_classes()
        check_shards(Path(filename), torch.distributed.get_world_size())
        return super().resume(filename, **kwargs)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Any = None,
    ) -> None:
        """Writes shards to a temporary folder and renames it; all processes take part.

        Raises:
            CheckpointError: it cannot be written; an older folder of that name is untouched.
        """
        path = Path(filename)
        if not save_optimizer:
            self._save_weights(path, extra_ckpt or {})
            return
        temporary = path.with_name(f".{path.name}.tmp")
        remove_on_first(temporary)
        barrier()
        try:
            super().save_checkpoint(
                filename=str(temporary),
                save_optimizer=True,
                save_param_scheduler=save_param_scheduler,
                extra_ckpt=extra_ckpt,
            )
            sync_tree(temporary)  # each process at least what it wrote itself
            barrier()
            if is_main_process():
                replace_folder(temporary, path)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)  # half of it fills the disk
            raise CheckpointError(
                found=f"{path} cannot be written: {error}",
                expected="a folder with room for the checkpoint; earlier checkpoints are untouched",
                fix="free some space or choose another --work-dir, then go on with --resume",
            ) from error
        barrier()

    def _save_weights(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes the trained weights, the optimiser's float32 masters, as one file."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.model.module.named_parameters():
            if parameter.requires_grad:
                # Every process takes part; only the first keeps what they gathered.
                whole = safe_get_full_fp32_param(parameter)
                if is_main_process():
                    state[name] = whole.detach().cpu().clone()
        if is_main_process():
            write_atomically({"state_dict": state, "meta": extra["meta"]}, path)
        barrier()


def _refuse_changed_frozen(model: Sa2VAModel, source: str) -> None:
    if model.changed_frozen:
        raise CheckpointError(
            found=f"{source} replaces {len(model.changed_frozen)} frozen tensors of the base: "
            + listing(model.changed_frozen, 3),
            expected="trained parts only: DeepSpeed's checkpoints cannot hold frozen weights",
            fix="make them a base first: tools/convert.py IN OUT --to native --lora keep, then "
            "model.pretrained=OUT load_from=OUT/adapter",
        )


@RUNNERS.register_module()
class Sa2VAFlexibleRunner(CheckpointsOfOurs, FlexibleRunner):
    """mmengine's FlexibleRunner, for DeepSpeed; the strategy reads and writes the shards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_memory(self.cfg.get("memory_budget_gib"))  # the model is built in train()

    @property
    def seed(self) -> int | None:
        """Seed of the strategy, which owns it here."""
        return self.strategy.seed

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Reports the weights that the strategy loaded before sharding."""
        self.load_report = self.strategy.load_report
        self.logger.info(self.load_report.text())

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continues a DeepSpeed run from its own shards."""
        extra = self.strategy.resume(filename)
        unpack_message_hub(self.message_hub, extra["message_hub"])
        self.train_loop._epoch = extra["meta"]["epoch"]
        self.train_loop._iter = extra["meta"]["iter"]
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
        """Writes the shards of all processes into one folder, atomically.

        A best checkpoint (``save_optimizer=False``) is one consolidated file instead.
        """
        extra = {
            "meta": self.checkpoint_meta(meta, by_epoch),
            "message_hub": pack_message_hub(self.message_hub),
        }
        self.strategy.save_checkpoint(
            filename=str(Path(out_dir) / filename),
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            extra_ckpt=extra,
        )
