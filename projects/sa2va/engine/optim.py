"""Parameter groups: trainable parameters only, a learning rate per part, decay on matrices only.

Which optimiser steps them is ``optim_wrapper.optimizer.type``: torch's by name, or bitsandbytes'
8-bit ones (Dettmers et al., 2022: 8-bit Optimizers via Block-wise Quantization), which mmengine
registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.optimizer.builder import BITSANDBYTES_OPTIMIZERS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn, optim

from projects.sa2va.errors import ConfigError, listing, suggest
from projects.sa2va.models import part_of
from projects.sa2va.models.parameters import PARTS

_FUSED = (optim.AdamW, optim.Adam, optim.SGD)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartwiseConstructor(DefaultOptimWrapperConstructor):
    """Builds one parameter group per part and decay.

    ``paramwise_cfg=dict(lr_mult={'SAM2 mask decoder': 0.1})`` multiplies the learning rate of a
    part; the names are those of the parameter table in the log. Biases, norms, embeddings and
    token rows get no weight decay. On a card, torch's own optimisers step in one fused kernel,
    which needs no copies of the parameters, unless the config says how (``fused``, ``foreach``);
    under DeepSpeed they stay as they are.
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
        wrapper = dict(self.optim_wrapper_cfg)
        trained = (p for group in groups.values() for p in group["params"])
        if wrapper.get("type") == "OptimWrapper" and can_fuse(optimizer, trained):
            optimizer["fused"] = True
        clip = wrapper.get("clip_grad")
        if (
            wrapper.get("type") == "OptimWrapper"
            and clip is not None
            and clip.get("type", "norm") == "norm"
        ):
            # Else torch scales all gradients by NaN, and which were so is lost (divergence.py).
            wrapper["clip_grad"] = {"error_if_nonfinite": True, **clip}
        optimizer["params"] = list(groups.values())
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


def can_fuse(optimizer: Mapping[str, Any], parameters: Iterable[Tensor]) -> bool:
    """Whether ``fused=True`` goes without saying: torch's optimiser, all on CUDA, nothing set."""
    said = {"fused", "foreach", "capturable", "differentiable"} & set(optimizer)
    known = OPTIMIZERS.get(optimizer["type"]) in _FUSED
    return known and not said and all(p.is_cuda for p in parameters)


def refuse_sharded(optimizer: Mapping[str, Any], how: str) -> None:
    """bitsandbytes' optimisers are for one card or DDP.

    DeepSpeed cannot put their states, which lie in blocks, back into its shards on ``--resume``,
    and they do not know torch's DTensor.

    Args:
        optimizer: ``optim_wrapper.optimizer``.
        how: what shards the states, for the message.

    Raises:
        ConfigError: it is one of them.
    """
    kind = optimizer["type"]
    if kind in BITSANDBYTES_OPTIMIZERS:
        raise ConfigError(
            found=f"optim_wrapper.optimizer.type={kind!r} together with {how}",
            expected="AdamW: bitsandbytes' states cannot be sharded and resumed",
            fix="set optim_wrapper.optimizer.type=AdamW, whose states are shared among the "
            "processes; or train without it, on one card or with plain DDP",
        )
