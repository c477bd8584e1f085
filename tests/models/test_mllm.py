"""InternVL with LoRA and token rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import InternVLAdapter
from projects.sa2va.processing import Sa2VAProcessor

from .conftest import MLLM_CONFIG, PHRASE, PROCESSOR, merged, picture

D = MLLM_CONFIG["text_config"]["hidden_size"]
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FROZEN: dict[str, Any] = dict(lora=None, train_token_rows=False, train_projector=False)


def adapter(processor: Sa2VAProcessor, **changes: Any) -> InternVLAdapter:
    base = dict(config=MLLM_CONFIG, dtype="float32", lora=dict(r=2, lora_alpha=4))
    return InternVLAdapter(processor, **merged(base, changes))


def prompt(processor: Sa2VAProcessor, seed: int = 0, phrase: str = PHRASE) -> tuple[Tensor, Tensor]:
    tiles = processor.tiles(picture(seed))
    ids = torch.cat([processor.prompt_ids(phrase, len(tiles)), processor.answer_ids()])
    return ids[None], tiles


def run(model: InternVLAdapter, ids: Tensor, tiles: Tensor) -> Tensor:
    return model.hidden_states(model.embed(ids, model.visual_tokens(tiles)), torch.ones_like(ids))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def effective_tables(model: InternVLAdapter) -> tuple[Tensor, Tensor]:
    """Embedding [V, D] and head [V, D] as the forward pass sees them."""
    with torch.no_grad():
        rows = model._core.get_input_embeddings().weight.shape[0]
        embedding = model._core.get_input_embeddings()(torch.arange(rows))
        return embedding.clone(), model.logits(torch.eye(D)).T.clone()


def randomise_lora(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_lora_is_on_every_linear_of_the_language_model_and_nowhere_else(processor) -> None:
    model = adapter(processor)
    adapted = [n.split(".lora_A")[0] for n in trainable(model) if ".lora_A" in n]
    assert all("language_model.layers" in name for name in adapted)
    layers = MLLM_CONFIG["text_config"]["num_hidden_layers"]
    assert len(adapted) == layers * len(LINEARS)
    assert {name.rsplit(".", 1)[-1] for name in adapted} == LINEARS
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in LINEARS
        assert not (linear and "vision_tower" in name and hasattr(module, "lora_A"))


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_added_rows_change_and_in_both_tables(processor, tied: bool) -> None:
    model = adapter(processor, config=dict(tie_word_embeddings=tied))
    before = effective_tables(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert torch.equal(before[0], before[1]) == tied
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, weight_decay=0.1)
    ids = torch.arange(len(before[0]))
    embedded = model._core.get_input_embeddings()(ids)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(embedded.shape, generator=generator)
    logits = model.logits(torch.randn(7, D, generator=generator))
    ((embedded * weight).sum() + logits.pow(2).sum()).backward()
    optimizer.step()
    after = effective_tables(model)
    added = set(processor.added_token_ids)
    for old, new in zip(before, after, strict=True):
        changed = (old != new).any(dim=1).nonzero()[:, 0].tolist()
        assert set(changed) == added
        assert bool((old != new)[changed].all()), "every value of the rows trains"
    assert torch.equal(after[0], after[1]) == tied
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())


@pytest.mark.parametrize(("tied", "tables"), [(False, 2), (True, 1)])
def test_trainable_count_is_small_and_exact(processor, tied: bool, tables: int) -> None:
    model = adapter(processor, config=dict(tie_word_embeddings=tied))
    rows = [p for n, p in trainable(model).items() if "trainable_tokens" in n]
    assert sum(p.numel() for p in rows) == tables * len(processor.added_token_ids) * D
    assert len({id(p) for p in rows}) == tables
    vocabulary = processor.vocab_size
    assert all(vocabulary not in p.shape for p in trainable(model).values()), "a whole table"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_is_in_dtype_and_what_trains_is_float32(processor, dtype: torch.dtype) -> None:
    model = adapter(processor, dtype=str(dtype).removeprefix("torch."))
    own = trainable(model)
    assert {p.dtype for p in own.values()} == {torch.float32}
    frozen = [p for n, p in model.named_parameters() if n not in own]
    assert {p.dtype for p in frozen} == {dtype}
    groups = {"lora": ".lora_", "rows": "trainable_tokens", "projector": "multi_modal_projector"}
    found = {k: [n for n in own if pattern in n] for k, pattern in groups.items()}
    assert all(found.values()) and sum(map(len, found.values())) == len(own)


@pytest.mark.parametrize("projector", [False, True])
def test_without_lora_and_rows_all_is_frozen(processor, projector: bool) -> None:
    model = adapter(processor, **{**FROZEN, "train_projector": projector})
    names = list(trainable(model))
    assert bool(names) == projector
    assert all("multi_modal_projector" in name for name in names)
    assert not hasattr(model.model, "peft_config")


@pytest.mark.parametrize("key", ["modules_to_save", "trainable_token_indices"])
def test_copies_of_whole_tables_are_refused(processor, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)lora\.{key}=.*train_token_rows=True") as caught:
        adapter(processor, lora={key: ["embed_tokens", "lm_head"]})
    assert "1.09 billion" in caught.value.expected


def test_rows_without_lora(processor) -> None:
    model = adapter(processor, lora=None, config=dict(tie_word_embeddings=True))
    assert [n for n in trainable(model) if "projector" not in n and "tokens_delta" not in n] == []
    assert effective_tables(model)[0].shape == (processor.vocab_size, D)
    with pytest.raises(ConfigError, match=r"train_token_rows=True with lora=None"):
        adapter(processor, lora=None)


@pytest.mark.parametrize("train_projector", [False, True])
def test_the_vision_tower_is_not_recorded(processor, train_projector: bool) -> None:
    model = adapter(processor, train_projector=train_projector)
    outputs: list[Tensor] = []
    tower = model._core.model.vision_tower
    for module in tower.modules():
        module.register_forward_hook(
            lambda _m, _i, out: outputs.extend(x for x in [out] if isinstance(x, Tensor))
        )
    visual = model.visual_tokens(processor.tiles(picture(0)))
    assert len(outputs) > 5 and not any(x.requires_grad for x in outputs)
    assert visual.shape == (1, processor.tokens_per_tile, D)
    assert visual.requires_grad == train_projector


def test_visual_tokens_stand_where_the_image_tokens_are(processor) -> None:
    model = adapter(processor)
    ids, tiles = prompt(processor)
    visual = model.visual_tokens(tiles)
    embedded = model.embed(ids, visual)
    image = ids[0] == processor.image_token_id
    assert int(image.sum()) == processor.tokens_per_tile
    assert torch.equal(embedded[0, image], visual[0])
    plain = model._core.get_input_embeddings()(ids)
    assert torch.equal(embedded[0, ~image], plain[0, ~image])
    with pytest.raises(ValueError, match="4 image tokens in the prompts, 8 "):
        model.embed(ids, torch.cat([visual, visual]))


def test_agrees_with_transformers_own_forward(processor) -> None:
    model = adapter(processor, **FROZEN).eval()
    ids, tiles = prompt(processor)
    hidden = run(model, ids, tiles)
    whole = model._core(input_ids=ids, pixel_values=tiles, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(model.logits(hidden[0]), whole.logits[0], atol=1e-5, rtol=1e-5)


def test_sdpa_and_eager_agree_also_beside_padding(processor) -> None:
    models = [adapter(processor, attn_implementation=a).eval() for a in ("sdpa", "eager")]
    ids, tiles = prompt(processor)
    padded = torch.cat([ids, torch.full((1, 5), processor.pad_token_id)], dim=1)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    results = []
    for model in models:
        text = model._core.model.language_model.config._attn_implementation
        tower = model._core.model.vision_tower.config._attn_implementation
        embedded = model.embed(padded, model.visual_tokens(tiles))
        results.append((text, tower, model.hidden_states(embedded, mask)[:, : ids.shape[1]]))
    assert [r[:2] for r in results] == [("sdpa", "sdpa"), ("eager", "eager")]
    torch.testing.assert_close(results[0][2], results[1][2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][2], run(models[0], ids, tiles), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_attended_to(processor, side: str) -> None:
    model = adapter(processor).eval()
    ids, tiles = prompt(processor)
    embedded = model.embed(ids, model.visual_tokens(tiles))
    length, noise = ids.shape[1], torch.full((1, 5, D), 3.0)
    parts = [noise, embedded] if side == "left" else [embedded, noise]
    own = slice(5, None) if side == "left" else slice(0, length)
    mask = torch.zeros(1, length + 5, dtype=torch.long)
    mask[:, own] = 1
    hidden = model.hidden_states(torch.cat(parts, dim=1), mask)[:, own]
    expected = model.hidden_states(embedded, torch.ones_like(ids))
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing_but_the_memory(processor) -> None:
    ids, tiles = prompt(processor)
    results = []
    for checkpointing in (False, True):
        model = adapter(processor, gradient_checkpointing=checkpointing).train()
        randomise_lora(model)
        calls: list[int] = []
        layer = model._core.model.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_args, calls=calls: calls.append(1))
        logits = model.logits(run(model, ids, tiles)[0])
        loss = logits.logsumexp(dim=-1).mean()
        loss.backward()
        grads = {n: p.grad for n, p in trainable(model).items()}
        results.append((loss.detach(), grads, len(calls)))
    (plain, plain_grads, once), (loss, grads, twice) = results
    assert (once, twice) == (1, 2), "recomputed in the backward pass"
    assert torch.equal(plain, loss)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-7, rtol=1e-5, msg=name)
        assert float(grad.abs().sum()) > 0 or ".lora_A" in name, name


def test_bfloat16_under_autocast(processor) -> None:
    full, half = (adapter(processor, dtype=d) for d in ("float32", "bfloat16"))
    ids, tiles = prompt(processor)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = run(half, ids, tiles)
        loss = half.logits(hidden[0]).float().logsumexp(dim=-1).mean()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in trainable(half).values()
    )
    # Random weights of the two dtypes are different draws; only the scale can be compared.
    reference = full.logits(run(full, ids, tiles)[0]).logsumexp(dim=-1).mean()
    assert float(loss) == pytest.approx(float(reference), rel=0.5)


def test_same_seed_same_model_and_the_generator_is_left_alone(processor) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = adapter(processor).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = adapter(processor).state_dict(), adapter(processor, seed=1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    for part in (".lora_A", "trainable_tokens_delta", "vision_tower", "embed_tokens"):
        differ = [n for n in one if part in n and not torch.equal(one[n], other[n])]
        assert differ, part


def test_a_small_vocabulary_is_refused(processor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=10.*image_token_id=None"):
        adapter(processor, config=dict(text_config=dict(vocab_size=10)))
    with pytest.raises(ConfigError, match="image_token_id=7"):
        adapter(processor, config=dict(image_token_id=7))
    small = adapter(processor, **FROZEN)
    small._core.resize_token_embeddings(20)
    small._core.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="an embedding table of 20 rows and a tokenizer of"):
        adapter(processor, config=None, pretrained=str(tmp_path))


@pytest.mark.parametrize("more", [0, 30])
def test_tables_grow_but_never_shrink(processor, tmp_path: Path, more: int) -> None:
    """A base model knows nothing of the added tokens, or is padded beyond them."""
    rows = processor.base_vocab_size + more
    base = adapter(processor, **FROZEN)
    base._core.resize_token_embeddings(rows)
    base._core.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    model = adapter(processor, config=None, pretrained=str(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before)
    again = effective_tables(adapter(processor, config=None, pretrained=str(tmp_path)))
    for own, old, same in zip(effective_tables(model), effective_tables(base), again, strict=True):
        assert len(own) == max(rows, processor.vocab_size)
        assert torch.equal(own[:rows], old) and torch.equal(own, same)


@pytest.mark.parametrize("wrong", [dict(tile_size=112), dict(tokens_per_tile=16)])
def test_tiles_must_fit_the_vision_encoder(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"tile_size, tokens_per_tile = .*\n.*\(56, 4\)"):
        adapter(Sa2VAProcessor(**merged(PROCESSOR, wrong)))


def test_generation_of_a_left_padded_batch_equals_singles(processor) -> None:
    model = adapter(processor).eval()
    rows = []
    for seed, phrase in enumerate(("a", "the left anterior descending artery")):
        tiles = processor.tiles(picture(seed))
        ids = processor.prompt_ids(phrase, len(tiles))[None]
        rows.append(model.embed(ids, model.visual_tokens(tiles))[0])
    alone = [model.generate(r[None], torch.ones(1, len(r), dtype=torch.long), 6)[0] for r in rows]
    length = max(map(len, rows))
    batch, mask = torch.zeros(2, length, D), torch.zeros(2, length, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, length - len(row) :], mask[index, length - len(row) :] = row, 1
    together = model.generate(batch, mask, 6)
    assert len(rows[0]) != len(rows[1]) and not torch.equal(alone[0], alone[1])
    for own, single in zip(together, alone, strict=True):
        assert torch.equal(own[: len(single)], single)


def test_generation_is_greedy_and_never_says_an_image_token(processor) -> None:
    model = adapter(processor).eval()
    ids, tiles = prompt(processor)
    embedded, mask = model.embed(ids, model.visual_tokens(tiles)), torch.ones_like(ids)
    first = int(model.logits(model.hidden_states(embedded, mask)[0, -1]).argmax())
    assert int(model.generate(embedded, mask, 1)[0, 0]) == first

    def shout(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        out = out.clone()
        out[..., processor.image_token_id] = 1e4
        return out

    model._core.get_output_embeddings().register_forward_hook(shout)
    assert processor.image_token_id not in model.generate(embedded, mask, 4)[0].tolist()


def test_generation_stops_at_the_end_of_the_turn(processor) -> None:
    model = adapter(processor).eval()
    ids, tiles = prompt(processor)
    model._core.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.tensor([processor.eos_token_id]), 1e4)
    )
    embedded = model.embed(ids, model.visual_tokens(tiles))
    answer = model.generate(embedded, torch.ones_like(ids), 9)
    assert answer.tolist() == [[processor.eos_token_id]]


def test_all_of_the_language_model_and_the_vision_encoder_train(processor) -> None:
    everything = dict(train_language_model=True, train_vision_encoder=True, train_projector=True)
    model = adapter(processor, **{**FROZEN, **everything}, dtype="bfloat16")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    hidden = run(model, *prompt(processor))
    (hidden.pow(2).sum() + model.logits(hidden[0]).pow(2).sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == [], "plain DDP refuses parameters without a gradient"
    parts = model.prediction_parts()
    assert parts["llm"].trained == parts["llm"].modules
    assert parts["vit"].trained == parts["vit"].modules


@pytest.mark.parametrize(
    "beside", [dict(lora=dict(r=2)), dict(train_token_rows=True), dict(quantization="nf4")]
)
def test_all_or_parts_of_the_language_model(processor, beside: dict) -> None:
    with pytest.raises(ConfigError, match=r"(?s)train_language_model=True.*lora=None"):
        adapter(processor, **{**FROZEN, "train_language_model": True, **beside})
