"""Which implementation of attention is taken, and that none changes the numbers."""

from __future__ import annotations

import pytest
import torch

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import attention

from .conftest import build, train_batch
from .test_levers import backward, randomise_trained


def test_sdpa_and_eager_have_the_same_losses_and_gradients() -> None:
    results = [
        backward(randomise_trained(build(mllm=dict(attn_implementation=name))), batch)
        for name in ("sdpa", "eager")
        for batch in [train_batch(build().processor)]
    ]
    (losses, grads), (expected, others) = results
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, grad in others.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-3, msg=name)


CARD = dict(cuda=True, capability=(8, 0), installed=True)


@pytest.mark.parametrize(
    ("machine", "dtype", "chosen"),
    [
        (CARD, torch.bfloat16, "flash_attention_2"),
        (CARD, torch.float16, "flash_attention_2"),
        (CARD, torch.float32, "sdpa"),
        ({**CARD, "installed": False}, torch.bfloat16, "sdpa"),
        ({**CARD, "capability": (7, 5)}, torch.bfloat16, "sdpa"),
        ({**CARD, "cuda": False}, torch.bfloat16, "sdpa"),
    ],
)
def test_flash_attention_is_taken_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, machine: dict, dtype: torch.dtype, chosen: str
) -> None:
    """The choice only: flash-attn needs a card, and was not run."""
    cuda = attention.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: machine["cuda"])
    monkeypatch.setattr(cuda, "get_device_capability", lambda: machine["capability"])
    monkeypatch.setattr(
        "transformers.utils.is_flash_attn_2_available", lambda: machine["installed"]
    )
    said: list[str] = []
    monkeypatch.setattr(attention, "print_log", lambda text, **_: said.append(text))
    assert attention.choose_attention("auto", dtype) == chosen
    assert [f": {chosen}" in line for line in said] == [True] * machine["cuda"]
    assert attention.choose_attention("sdpa", dtype) == "sdpa"
    assert attention.choose_attention("eager", dtype) == "eager"
    if chosen == "sdpa":
        with pytest.raises(ConfigError, match="'flash_attention_2' and ") as caught:
            attention.choose_attention("flash_attention_2", dtype)
        assert "pip install flash-attn" in caught.value.fix
    else:
        assert attention.choose_attention("flash_attention_2", dtype) == chosen


def test_unknown_attention() -> None:
    with pytest.raises(ConfigError, match=r"attn_implementation='spda' \(did you mean 'sdpa'"):
        build(mllm=dict(attn_implementation="spda"))
