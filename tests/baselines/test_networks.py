"""Networks and losses from a config, and what is refused."""

from __future__ import annotations

import pytest
import torch

from projects.sa2va.baselines.networks import build_loss, build_network
from projects.sa2va.config import load_config
from projects.sa2va.errors import ConfigError
from tests.conftest import ROOT

from .conftest import DYNUNET, RESIDUAL, UNET

UNET_ARCADE = ROOT / "projects/sa2va/configs/baselines/unet_arcade.py"


def network(config: dict, image_size: int = 64, seed: int = 0) -> torch.nn.Module:
    return build_network(config, in_channels=1, out_channels=2, image_size=image_size, seed=seed)


@pytest.mark.parametrize("config", [UNET, RESIDUAL, DYNUNET], ids=lambda config: config["type"])
def test_weights_follow_from_the_seed_and_leave_the_generator(config):
    state = torch.random.get_rng_state()
    one, two, other = (dict(network(config, seed=s).named_parameters()) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert network(config).eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("config", "image_size", "said"),
    [
        ({**RESIDUAL, "type": "Unet"}, 64, "did you mean 'UNet'"),
        ({**RESIDUAL, "strides": [2, 2, 2]}, 64, "model.network is refused by MONAI's UNet"),
        ({**RESIDUAL, "norm": "INSTANT"}, 64, "model.network is refused"),
        ({**RESIDUAL, "strides": [2, 5]}, 64, "set processor.image_size=70"),
        ({**RESIDUAL, "norm": "BATCH"}, 64, "running_mean"),
        ({**DYNUNET, "deep_supr_num": 9}, 64, "model.network is refused by MONAI's DynUNet"),
    ],
)
def test_networks_that_cannot_be(config, image_size, said):
    with pytest.raises(ConfigError) as caught:
        network(config, image_size)
    assert said in str(caught.value)


def test_losses_are_of_sigmoids():
    logits = torch.randn(3, 1, 8, 8)
    labels = (torch.rand(3, 1, 8, 8) > 0.7).float()
    p = logits.sigmoid()
    inside = (p * labels).sum((1, 2, 3))
    dice = 1 - (2 * inside + 1e-5) / (p.sum((1, 2, 3)) + labels.sum((1, 2, 3)) + 1e-5)
    ce = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss = build_loss(dict(type="DiceCELoss", lambda_dice=0.5))
    assert torch.isclose(loss(logits, labels), 0.5 * dice.mean() + ce, rtol=1e-5)
    assert build_loss(dict(type="DiceFocalLoss"))(logits, labels) > 0
    for config in (dict(type="DiceLoss"), dict(type="DiceCELoss", lambda_ce=-1.0)):
        with pytest.raises(ConfigError, match=r"model[.]loss"):
            build_loss(config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.network.feature", [8], "did you mean 'features'"),
        ("model.network.in_channels", 3, "no key 'model.network.in_channels'"),
        ("model.loss.softmax", True, "no key 'model.loss.softmax'"),
        ("model.network.type", "SwinUNETR", "unknown 'model.network.type'"),
    ],
)
def test_keys_are_those_of_monai(key, value, said):
    with pytest.raises(ConfigError) as caught:
        load_config(UNET_ARCADE, {key: value})
    assert said in str(caught.value)


def test_required_keys_of_monai_are_asked_for(tmp_path):
    path = tmp_path / "c.py"
    network = "dict(_delete_=True, type='UNet', channels=[4, 8])"
    path.write_text(f"_base_ = [{str(UNET_ARCADE)!r}]\nmodel = dict(network={network})\n")
    with pytest.raises(ConfigError, match="lacks strides"):
        load_config(path)
