"""The TensorBoard backend: only where the config asks for it, and only where it is installed."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from projects.sa2va.engine import tensorboard
from projects.sa2va.engine.start import prepare_training
from projects.sa2va.errors import ConfigError, SetupError

LOCAL, BOARD = {"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}


@pytest.fixture
def installed(monkeypatch):
    """Sets whether the package is there."""

    def there(version):
        monkeypatch.setattr(tensorboard, "installed_version", lambda name: version)

    there("2.21.0")
    return there


def backends(cfg: Config) -> list[dict]:
    return [dict(backend) for backend in cfg.visualizer.vis_backends]


def test_it_is_added_beside_the_local_one_and_once(installed):
    cfg = Config({"tensorboard": True})
    tensorboard.set_tensorboard(cfg)
    tensorboard.set_tensorboard(cfg)  # the config that a run dumped
    assert backends(cfg) == [LOCAL, BOARD] and cfg.visualizer.type == "Visualizer"
    tensorboard.drop_tensorboard(cfg)
    assert backends(cfg) == [LOCAL]


def test_nothing_changes_where_nobody_asks(installed):
    installed(None)
    for cfg in (Config({}), Config({"tensorboard": False})):
        before = cfg.to_dict()
        tensorboard.set_tensorboard(cfg)
        assert cfg.to_dict() == before


@pytest.mark.parametrize(
    "asking",
    [{"tensorboard": True}, {"visualizer": {"type": "Visualizer", "vis_backends": [BOARD]}}],
)
def test_a_missing_package_is_an_error_with_its_command(installed, asking):
    installed(None)
    with pytest.raises(SetupError) as error:
        tensorboard.set_tensorboard(Config(asking))
    assert "pip install tensorboard==2.21.0" in error.value.fix


def test_only_a_switch_is_taken():
    with pytest.raises(ConfigError, match="tensorboard='yes'"):
        tensorboard.set_tensorboard(Config({"tensorboard": "yes"}))


def test_training_asks_before_anything_is_written(installed, experiment, tmp_path):
    installed(None)
    out = tmp_path / "out"
    with pytest.raises(SetupError, match="tensorboard is not installed"):
        prepare_training(str(experiment), work_dir=str(out), cfg_options={"tensorboard": True})
    assert not out.exists()
    installed("2.21.0")
    cfg = prepare_training(str(experiment), work_dir=str(out), cfg_options={"tensorboard": True})
    assert backends(cfg) == [LOCAL, BOARD]
