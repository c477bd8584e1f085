"""An exponential moving average of the trained weights, which predicts in place of the last step's.

Source: Polyak and Juditsky, 1992 (averaging); the decay that warms up, min(decay, (1 + t) / (10 +
t)), is TensorFlow's ExponentialMovingAverage(num_updates). mmengine's EMAHook copies the whole
model, frozen weights among it, and knows neither our checkpoints nor shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from projects.sa2va.checkpoints import AVERAGED
from projects.sa2va.errors import ConfigError
from projects.sa2va.models.trained import trained_parameters
from projects.sa2va.planning.holdings import configured_hooks

from .bare import bare_model
from .shards import local, shard_like
from .stopping import steps_of


@HOOKS.register_module()
class WeightEMAHook(Hook):
    """Averages what trains, after each optimiser step: ``average += (1 - d) * (weight - average)``.

    Validation, the choice of the best checkpoint and everything that reads a checkpoint for
    prediction use the average; training goes on with the weights themselves. Checkpoints hold both.

    Args:
        decay: d in the long run, 0 to 1 (both excluded): 1 / (1 - decay) steps count.
        warmup: step t (from 0) has d = min(decay, (1 + t) / (warmup + t)), so that the random
            start is forgotten; 1 is no warm-up.

    Attributes:
        shadow: the average, float32, by the model's own names; spread as the weights are.
        steps: optimiser steps that are in it.

    Raises:
        ConfigError: a decay or warm-up that cannot be.
    """

    priority = "NORMAL"  # after the step's memory is noted, before anything is saved

    def __init__(self, decay: float = 0.999, warmup: int = 10) -> None:
        is_number = isinstance(decay, int | float) and not isinstance(decay, bool)
        if not (is_number and 0 < decay < 1):
            raise _wrong("decay", decay, "a number between 0 and 1, such as 0.999")
        if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 1:
            raise _wrong("warmup", warmup, "a whole number of at least 1; 1 is no warm-up")
        self.decay, self.warmup = float(decay), warmup
        self.shadow: dict[str, Tensor] = {}
        self.steps = 0
        self._stored: dict[str, Tensor] | None = None

    def settings(self) -> dict[str, Any]:
        """``decay``, ``warmup`` and ``steps``, for the checkpoint's meta data."""
        return {"decay": self.decay, "warmup": self.warmup, "steps": self.steps}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Goes on with the average of ``checkpoint``; called before :meth:`before_train`."""
        self._stored = checkpoint[AVERAGED]
        self.steps = checkpoint["meta"][AVERAGED]["steps"]

    def before_train(self, runner: Any) -> None:
        """Begins with the weights as they are, or with the average of the run that goes on."""
        trained = trained_parameters(bare_model(runner.model))
        for name, parameter in trained.items():
            self.shadow[name] = parameter.detach().to(torch.float32, copy=True)
            if self._stored is not None:
                stored = shard_like(self._stored[name], parameter)
                local(self.shadow[name]).copy_(local(stored))
        self._stored = None
        size = sum(local(tensor).numel() * 4 for tensor in self.shadow.values())
        runner.logger.info(
            f"Averaged weights: {len(self.shadow)} trained tensors in float32, "
            f"{size / 2**20:,.1f} MiB here; decay {self.decay:g}, warm-up {self.warmup}, "
            f"{self.steps} steps so far. Validation and predictions use the average"
        )

    def after_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Adds the weights after an optimiser step; not in between, while gradients add up."""
        if (runner.iter + 1) % steps_of(runner.cfg) == 0:
            self.update(trained_parameters(bare_model(runner.model)))

    def update(self, trained: Mapping[str, Tensor]) -> None:
        """One step of the average.

        Args:
            trained: the weights by name, as :attr:`shadow`.
        """
        weight = 1 - min(self.decay, (1 + self.steps) / (self.warmup + self.steps))
        shadow = [local(self.shadow[name]) for name in trained]
        torch._foreach_lerp_(shadow, [local(p) for p in trained.values()], weight)
        self.steps += 1

    def swap(self, trained: Mapping[str, Tensor]) -> None:
        """Exchanges weights and average in place, bit for bit; twice is as it was."""
        for name, parameter in trained.items():
            own, average = local(parameter), local(self.shadow[name])
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def weight_ema(runner: Any) -> WeightEMAHook | None:
    """The runner's WeightEMAHook, None where it has none."""
    hooks = getattr(runner, "_hooks", [])
    return next((hook for hook in hooks if isinstance(hook, WeightEMAHook)), None)


@contextlib.contextmanager
def averaged_weights(runner: Any) -> Iterator[None]:
    """The model has its averaged weights within, where the run averages; also after an error."""
    hook = weight_ema(runner)
    if hook is None or not hook.shadow:
        yield
        return
    trained = trained_parameters(bare_model(runner.model))
    hook.swap(trained)
    try:
        yield
    finally:
        hook.swap(trained)


def ema_settings(cfg: Config | Mapping[str, Any]) -> dict[str, Any] | None:
    """``decay`` and ``warmup`` of a config's WeightEMAHook, defaults filled in; None without one.

    Raises:
        ConfigError: two of them, or a value that cannot be.
    """
    ours = [hook for hook in configured_hooks(cfg) if HOOKS.get(hook["type"]) is WeightEMAHook]
    if not ours:
        return None
    if len(ours) > 1:
        raise ConfigError(
            found=f"{len(ours)} WeightEMAHooks in custom_hooks",
            expected="one: a checkpoint holds one average",
            fix="keep one of them in custom_hooks",
        )
    plain = {key: value for key, value in ours[0].items() if key not in ("type", "priority")}
    settings = WeightEMAHook(**plain).settings()
    return {key: settings[key] for key in ("decay", "warmup")}


def check_ema(cfg: Config) -> None:
    """Refuses averaging where it does not work, before anything is built.

    Raises:
        ConfigError: as :func:`ema_settings`; or DeepSpeed (its float32 weights lie flat in shards).
    """
    if ema_settings(cfg) is not None and cfg.get("strategy") is not None:
        raise ConfigError(
            found="WeightEMAHook in custom_hooks together with --deepspeed",
            expected="one card, DDP or FSDP2: DeepSpeed keeps the weights that would be averaged "
            "in flat shards of its own",
            fix="train with STRATEGY=fsdp2 (or without DEEPSPEED) in place of DEEPSPEED, or "
            "remove WeightEMAHook from custom_hooks",
        )


def _wrong(key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        found=f"WeightEMAHook: {key}={value!r}",
        expected=expected,
        fix=f"correct {key} of WeightEMAHook in custom_hooks",
    )
