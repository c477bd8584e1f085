"""Parameter groups: trainable parameters only, a learning rate per part, decay on matrices only."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from projects.sa2va.errors import ConfigError, listing, suggest
from projects.sa2va.models import part_of
from projects.sa2va.models.parameters import PARTS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartwiseConstructor(DefaultOptimWrapperConstructor):
    """Builds one parameter group per part and decay.

    ``paramwise_cfg=dict(lr_mult={'SAM2 mask decoder': 0.1})`` multiplies the learning rate of a
    part; the names are those of the parameter table in the log. Biases, norms, embeddings and
    token rows get no weight decay.
    """

    def __call__(self, model: nn.Module) -> Any:
        model = getattr(model, "module", model)
        optimizer = dict(self.optimizer_cfg)
        base_lr, decay = optimizer["lr"], optimizer.get("weight_decay", 0.0)
        lr_mult = self._lr_mult()
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            part = part_of(name)
            decays = parameter.ndim > 1 and part != "token rows" and "embed" not in name
            group = groups.setdefault(
                (part, decays),
                {
                    "params": [],
                    "lr": base_lr * lr_mult.get(part, 1.0),
                    "weight_decay": decay if decays else 0.0,
                },
            )
            group["params"].append(parameter)
        idle = sorted(set(lr_mult) - {part for part, _ in groups})
        if idle:
            raise ConfigError(
                found=f"optim_wrapper.paramwise_cfg.lr_mult for {listing(idle)}, which does not "
                "train in this config",
                expected="only parts that train: " + ", ".join(sorted({p for p, _ in groups})),
                fix="remove the part from lr_mult, or let it train",
            )
        optimizer["params"] = list(groups.values())
        wrapper = dict(self.optim_wrapper_cfg)
        return OPTIM_WRAPPERS.build(
            wrapper, default_args={"optimizer": OPTIMIZERS.build(optimizer)}
        )

    def _lr_mult(self) -> dict[str, float]:
        settings = dict(self.paramwise_cfg or {})
        lr_mult = dict(settings.pop("lr_mult", {}))
        parts = [part for part, _ in PARTS]
        for key in settings:
            raise ConfigError(
                found=f"optim_wrapper.paramwise_cfg.{key}",
                expected="lr_mult" + suggest(key, ["lr_mult"]),
                fix="give paramwise_cfg=dict(lr_mult={part: factor})",
            )
        for part in lr_mult:
            if part not in parts:
                raise ConfigError(
                    found=f"optim_wrapper.paramwise_cfg.lr_mult[{part!r}]",
                    expected="one of " + ", ".join(parts) + suggest(part, parts),
                    fix="use the names of the parameter table that training prints at start",
                )
        return lr_mult

    def _validate_cfg(self) -> None:
        # mmengine's own keys (custom_keys, norm_decay_mult, ...) are not used here.
        if not isinstance(self.paramwise_cfg or {}, dict):
            raise TypeError("paramwise_cfg must be a dict")
