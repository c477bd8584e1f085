"""DeepSpeed ZeRO: xtuner's strategy and mmengine's FlexibleRunner, with checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from mmengine.config import ConfigDict
from mmengine.registry import RUNNERS, STRATEGIES
from mmengine.runner._flexible_runner import FlexibleRunner
from torch import Tensor, nn
from xtuner.engine import DeepSpeedStrategy

from projects.sa2va.checkpoints import (
    RAW,
    InitFrom,
    LoadReport,
    load_parts,
    load_trained,
    read_checkpoint,
    read_initial,
)
from projects.sa2va.errors import CheckpointError, listing
from projects.sa2va.models import Sa2VAModel

from .bare import bare_model
from .memory import limit_memory
from .runner import CheckpointsOfOurs
from .zero_state import gather_masters, gather_optimizer, scatter


@STRATEGIES.register_module()
class Sa2VADeepSpeedStrategy(DeepSpeedStrategy):
    """ZeRO-1/2/3 over a model that every process builds whole, from the same seed or files.

    (Built under ZeRO-3's own initialisation, random weights would differ from those of a run
    without it.) Published weights stay mapped from their files, which the processes of a machine
    share, until each tensor goes to the card and is sharded.

    Args:
        config: DeepSpeed's configuration.
        load_trained_from: checkpoint whose trained weights the model starts from. They are loaded
            before sharding, so that DeepSpeed's float32 masters begin with them.
        goes_on: whether a run goes on from that checkpoint: then its raw weights are taken.
        init_from: of the config; nothing is taken where ``load_trained_from`` is set.
        kwargs: those of xtuner's strategy.
    """

    CONFIG_SCHEMAS: ClassVar = {"init_from": None}

    def __init__(
        self,
        config: ConfigDict | dict,
        load_trained_from: str | None = None,
        goes_on: bool = False,
        init_from: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        plain = config.to_dict() if isinstance(config, ConfigDict) else config
        super().__init__(config=plain, **kwargs)
        self.load_trained_from, self.goes_on = load_trained_from, goes_on
        self.init_from = InitFrom.from_config(init_from)
        self.initial: dict[str, Any] | None = None
        self.checkpoint: dict[str, Any] | None = None
        self.load_report: LoadReport | None = None
        self.groups: list[list[nn.Parameter]] = []

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
            self.checkpoint = read_checkpoint(self.load_trained_from)
            self.load_report = load_trained(
                built,
                self.checkpoint,
                self.load_trained_from,
                RAW if self.goes_on else None,
            )
            _refuse_changed_frozen(built, self.load_trained_from)
        elif self.init_from is not None:
            source = read_initial(self.init_from)
            self.load_report, self.initial = load_parts(built, source, self.init_from)
        self.hf_deepspeed_config = HfDeepSpeedConfig(self.config)
        return built

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shards; under ZeRO-3 a tensor at a time, or a card would first hold the whole model."""
        if hasattr(self, "optim_wrapper"):
            optimizer = self.optim_wrapper.optimizer
            self.groups = [list(group["params"]) for group in optimizer.param_groups]
        if self.config.get("zero_optimization", {}).get("stage") == 3:
            import deepspeed

            if self.config.get("bf16", {}).get("enabled"):
                for parameter in model.parameters():
                    parameter.data = parameter.data.to(torch.bfloat16)
            deepspeed.zero.Init(module=model, config_dict_or_path=self.config)
            device = deepspeed.get_accelerator().current_device_name()
            for buffer in model.buffers():  # which DeepSpeed moves with whole models only
                buffer.data = buffer.data.to(device)
        return super()._wrap_model(model)

    def masters(self) -> dict[str, Tensor]:
        """What was trained, float32, under the model's own names; all processes take part."""
        model = bare_model(self.model)
        return gather_masters({n: p for n, p in model.named_parameters() if p.requires_grad})

    def optimizer_state(self) -> dict[str, Any]:
        """As of the optimiser wrapper without DeepSpeed; all processes take part."""
        state = gather_optimizer(self.model.optimizer, self.groups)
        return {**self.optim_wrapper.state_dict(), **state}

    def load_optimizer_state(self, state: dict[str, Any], trained: dict[str, Tensor]) -> None:
        """Puts :meth:`optimizer_state` and :meth:`masters` back, into this run's shards."""
        names = {parameter: name for name, parameter in bare_model(self.model).named_parameters()}
        masters = [[trained[names[parameter]] for parameter in group] for group in self.groups]
        self.optim_wrapper.load_state_dict(dict(state))
        scatter(self.model.optimizer, self.groups, masters, state)


def _refuse_changed_frozen(model: Sa2VAModel, source: str) -> None:
    if model.changed_frozen:
        raise CheckpointError(
            found=f"{source} replaces {len(model.changed_frozen)} frozen tensors of the base: "
            + listing(model.changed_frozen, 3),
            expected="trained parts only: under DeepSpeed checkpoints hold no frozen weights",
            fix="make them a base first: tools/convert.py IN OUT --to native --lora keep, then "
            "model.pretrained=OUT load_from=OUT/adapter",
        )


@RUNNERS.register_module()
class Sa2VAFlexibleRunner(CheckpointsOfOurs, FlexibleRunner):
    """mmengine's FlexibleRunner, for DeepSpeed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_memory(self.cfg.get("memory_budget_gib"))  # the model is built in train()

    @property
    def seed(self) -> int | None:
        """Seed of the strategy, which owns it here."""
        return self.strategy.seed

    def load_or_resume(self) -> None:
        """As mmengine's; parts of another checkpoint are loaded by now, and only reported."""
        super().load_or_resume()
        if self.strategy.initial is not None:
            self.report_initial(self.strategy.load_report, self.strategy.initial)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Reports the weights that the strategy loaded before sharding."""
        self.load_report = self.strategy.load_report
        self.logger.info(self.load_report.text())
        self.strategy.checkpoint = None

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continues a run of any strategy: masters, optimiser, schedule, log and position."""
        checkpoint = self.strategy.checkpoint
        self.load_checkpoint(filename)
        self.strategy.load_optimizer_state(checkpoint["optimizer"], checkpoint["state_dict"])
        self.restore_progress(checkpoint)
        # Where DeepSpeed counts the batches that it accumulates.
        engine = self.model.model
        engine.micro_steps = self.iter
        engine.global_steps = self.iter // engine.gradient_accumulation_steps()

    def trained_state(self) -> dict[str, Tensor]:
        """The float32 masters."""
        return self.strategy.masters()

    def optimizer_state(self) -> dict[str, Any]:
        """As without DeepSpeed."""
        return self.strategy.optimizer_state()
