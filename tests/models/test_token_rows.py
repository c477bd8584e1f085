"""Token rows: as peft computes them, without a copy of the tables."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

ROWS, WIDTH, IDS = 977, 16, [3, 500, 976]


class Sizes(TorchDispatchMode):
    """Records the number of elements of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = ("view", "detach", "alias", "t.default", "transpose", "_unsafe_view", "permute")
        if torch.is_tensor(out) and not any(view in str(func) for view in views):
            self.seen.append(out.numel())
        return out


def model(tied: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    rows = IDS if tied else {"embed_tokens": IDS, "lm_head": IDS}
    lora = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows)
    built = get_peft_model(Qwen2ForCausalLM(config).to(dtype), lora)
    for name, parameter in built.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float() + 0.1 * torch.randn(len(IDS), WIDTH)
    return built


def as_peft_does(net: torch.nn.Module) -> None:
    """Replaces the table by peft's merged copy, as its own forward pass does."""
    for module in net.modules():
        if isinstance(module, TrainableTokensLayer):
            module.forward_adapters = _merged.__get__(module)


def _merged(self, x, active_adapters, *args, **kwargs):
    weight = self.get_merged_weights(active_adapters)
    if isinstance(self.base_layer, torch.nn.Embedding):
        return torch.nn.functional.embedding(x, weight)
    return torch.nn.functional.linear(x, weight)


def loss_of(net: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = net(input_ids=ids).logits
    return logits, torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ids", [[[3, 7, 500, 500, 1]], [[9, 10, 11, 12, 13], [976, 3, 4, 976, 5]]])
def test_same_as_with_a_merged_table(tied: bool, ids: list[list[int]]) -> None:
    ours = model(tied)
    theirs = copy.deepcopy(ours)
    as_peft_does(theirs)
    ids = torch.tensor(ids)
    (logits, loss), (expected, expected_loss) = loss_of(ours, ids), loss_of(theirs, ids)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected_loss.backward()
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    trained = [(name, a.grad, b.grad) for (name, a), (_, b) in pairs if a.requires_grad]
    assert sum("trainable_tokens_delta" in name for name, _, _ in trained) == (1 if tied else 2)
    for name, grad, other in trained:
        assert other.abs().sum() > 0 or "lora_A" in name  # B is zero at the start
        torch.testing.assert_close(grad, other, atol=1e-7, rtol=1e-5, msg=name)


def test_rows_change_the_result_and_only_where_their_tokens_are() -> None:
    net = model(tied=False)
    embedding = net.get_input_embeddings()
    ids = torch.tensor([[3, 7, 976]])
    table = net.get_base_model().model.embed_tokens.token_adapter.base_layer.weight
    rows = net.get_base_model().model.embed_tokens.token_adapter.trainable_tokens_delta["default"]
    out = embedding(ids)[0]
    assert torch.equal(out[1], table[7])
    assert torch.equal(out[0], rows[0]) and torch.equal(out[2], rows[2])
    assert not torch.equal(out[0], table[3])


@pytest.mark.parametrize("tied", [False, True])
def test_no_table_is_copied_forwards_or_backwards(tied: bool) -> None:
    net = model(tied)
    ids = torch.tensor([[3, 7, 500, 500, 1]])
    with Sizes() as ours:
        loss_of(net, ids)[1].backward()
    as_peft_does(net)
    with Sizes() as theirs:
        loss_of(net, ids)[1].backward()
    assert max(theirs.seen) >= ROWS * WIDTH  # the measure sees a copy where there is one
    assert max(ours.seen) < ROWS * WIDTH


def test_bfloat16_under_autocast() -> None:
    net = model(tied=False, dtype=torch.bfloat16)
    other = copy.deepcopy(net)
    as_peft_does(other)
    ids = torch.tensor([[3, 7, 500]])
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = net(input_ids=ids).logits, other(input_ids=ids).logits
    assert logits.dtype == expected.dtype
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)


def test_merged_and_disabled_adapters_are_peft_s_own() -> None:
    net = model(tied=False).eval()
    ids = torch.tensor([[3, 7, 500]])
    with torch.no_grad():
        before = net(input_ids=ids).logits
        with net.disable_adapter():
            base = net(input_ids=ids).logits
        net.merge_adapter()
        merged = net(input_ids=ids).logits
        net.unmerge_adapter()
        again = net(input_ids=ids).logits
    torch.testing.assert_close(merged, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, before, atol=1e-5, rtol=1e-5)
    assert (base - before).abs().max() > 1e-3
