"""Curves for TensorBoard, where the config asks for them: ``tensorboard = True``."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.pins import TENSORBOARD
from projects.sa2va.versions import installed_version, pip_command

_BACKEND = "TensorboardVisBackend"


def set_tensorboard(cfg: Config) -> None:
    """Puts mmengine's TensorBoard backend beside the one that writes scalars.json.

    Events are written to ``<work dir>/<timestamp>/vis_data``.

    Raises:
        ConfigError: ``tensorboard`` is no switch.
        SetupError: the package is missing, and the config asks for it.
    """
    wanted = cfg.get("tensorboard", False)
    if not isinstance(wanted, bool):
        raise ConfigError(
            found=f"tensorboard={wanted!r}", expected="True or False", fix="tensorboard=True"
        )
    backends = (cfg.get("visualizer") or {}).get("vis_backends") or []
    named = any(backend.get("type") == _BACKEND for backend in backends)
    if not (wanted or named):
        return
    if installed_version("tensorboard") is None:
        raise SetupError(
            found="tensorboard is not installed, and the config asks for its curves",
            expected=f"tensorboard=={TENSORBOARD['tensorboard']}",
            fix=f"{pip_command(['tensorboard'])}; or tensorboard=False",
        )
    if not named:
        visualizer = cfg.get("visualizer") or ConfigDict(type="Visualizer")
        own = backends or [{"type": "LocalVisBackend"}]
        cfg.visualizer = {**visualizer, "vis_backends": [*own, {"type": _BACKEND}]}


def drop_tensorboard(cfg: Config) -> None:
    """Takes the backend out of a test, whose config may be that of a training run."""
    cfg.tensorboard = False
    visualizer = cfg.get("visualizer") or {}
    if visualizer.get("vis_backends"):
        visualizer["vis_backends"] = [
            backend for backend in visualizer["vis_backends"] if backend.get("type") != _BACKEND
        ]
