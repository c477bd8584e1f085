"""SAM2 prompted by an embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import ImageFeatures, MaskLoss, Sam2Adapter

from .conftest import GROUNDING_CONFIG, merged

C = GROUNDING_CONFIG["prompt_encoder_config"]["hidden_size"]


def adapter(image_size: int = 64, **changes: Any) -> Sam2Adapter:
    return Sam2Adapter(
        image_size, **merged(dict(config=GROUNDING_CONFIG, dtype="float32"), changes)
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def shared() -> Sam2Adapter:
    """Tests must not change it."""
    return adapter().eval()


@pytest.fixture(scope="module")
def features(shared: Sam2Adapter) -> ImageFeatures:
    with torch.no_grad():
        return shared.encode(noise(2, 3, 64, 64))


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_an_input_size_equals_a_sam2_made_for_it(shared: Sam2Adapter, size: int) -> None:
    """Same weights at every size, and the features of transformers' own model of that size."""
    model = adapter(size).eval()
    state = model.model.state_dict()
    assert all(torch.equal(state[n], v) for n, v in shared.model.state_dict().items())
    side = size // 16
    sizes = [[side * 4] * 2, [side * 2] * 2, [side] * 2]
    config = merged(
        GROUNDING_CONFIG,
        dict(
            vision_config=dict(
                backbone_config=dict(image_size=[size, size]), backbone_feature_sizes=sizes
            ),
            prompt_encoder_config=dict(image_size=size),
        ),
    )
    native = Sam2Model._from_config(Sam2Config(**config), attn_implementation="sdpa").eval()
    native.load_state_dict(state)
    images, prompts = noise(1, 3, size, size), noise(1, C, seed=1)
    with torch.no_grad():
        own = model.encode(images)
        logits, iou, _ = model.decode(own, prompts)
        expected = native.get_image_embeddings(images)
        position = native.get_image_wide_positional_embeddings()
    for mine, theirs in zip((own.stride4, own.stride8, own.stride16), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.model.get_image_wide_positional_embeddings(), position)
    assert position.shape == (1, C, side, side)
    assert logits.shape == (1, size // 4, size // 4) and iou.shape == (1, 3)
    assert model.image_size == size and bool(logits.isfinite().all())


@pytest.mark.parametrize(("size", "better"), [(80, 64), (100, 96), (16, 32)])
def test_a_size_that_does_not_fit(size: int, better: int) -> None:
    with pytest.raises(ConfigError, match=rf"processor.image_size={size}\n.*\n.*={better}$"):
        adapter(size)


def test_the_mask_with_the_best_predicted_iou_is_returned(
    shared: Sam2Adapter, features: ImageFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prompts = shared.model.mask_decoder, noise(2, C, seed=1)
    seen: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda _m, _i, out: seen.append(out[0][:, 0]))
    # One best mask for both prompts, then another one for each: scores of tokens 0 (single) to 3.
    for best in ((0, 0), (1, 1), (2, 2), (2, 0)):
        scores = torch.zeros(2, 1, 4)
        scores[..., 0] = 9.0  # the single-mask output may score as it likes
        scores[[0, 1], 0, [best[0] + 1, best[1] + 1]] = 1.0
        monkeypatch.setattr(decoder.iou_prediction_head, "forward", lambda _x, s=scores: s)
        with torch.no_grad():
            logits, iou, _ = shared.decode(features, prompts)
        masks = seen[-1]
        assert masks.shape[:2] == (2, 3)
        assert all(not torch.equal(masks[0, a], masks[0, b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        assert torch.equal(logits, masks[[0, 1], list(best)])
        assert torch.equal(iou, scores[:, 0, 1:])
    hook.remove()


def test_the_sparse_prompt_is_two_empty_points_then_the_embedding(
    shared: Sam2Adapter, features: ImageFeatures
) -> None:
    seen: list[dict] = []
    hook = shared.model.mask_decoder.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    prompts = noise(2, C, seed=2)
    with torch.no_grad():
        shared.decode(features, prompts)
    hook.remove()
    sparse = seen[0]["sparse_prompt_embeddings"]
    empty = shared.model.prompt_encoder.not_a_point_embed.weight
    assert sparse.shape == (2, 1, 3, C)
    for index in (0, 1):
        torch.testing.assert_close(sparse[:, 0, index], empty.expand(2, C))
    assert torch.equal(sparse[:, 0, 2], prompts)
    dense = shared.model.prompt_encoder.no_mask_embed.weight.reshape(1, C, 1, 1)
    assert torch.equal(seen[0]["dense_prompt_embeddings"], dense.expand(2, C, 4, 4))
    assert seen[0]["multimask_output"] is True


def test_no_memory_embedding_is_added_to_the_coarsest_map_only() -> None:
    model, images = adapter().eval(), noise(1, 3, 64, 64)
    added = noise(C, seed=3)
    with torch.no_grad():
        before = model.encode(images)
        model.model.no_memory_embedding.add_(added)
        after = model.encode(images)
    expected = before.stride16 + added.reshape(1, C, 1, 1)
    torch.testing.assert_close(after.stride16, expected)
    assert torch.equal(before.stride4, after.stride4)
    assert torch.equal(before.stride8, after.stride8)


def test_many_prompts_at_once_equal_one_by_one(
    shared: Sam2Adapter, features: ImageFeatures
) -> None:
    owner, prompts = torch.tensor([0, 1, 1, 0, 1]), noise(5, C, seed=4)
    with torch.no_grad():
        logits, iou, _ = shared.decode(features.select(owner), prompts)
        for row in range(5):
            single = features.select(owner[row : row + 1])
            one, score, _ = shared.decode(single, prompts[row : row + 1])
            torch.testing.assert_close(logits[row], one[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[row], score[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[0], logits[3]), "another prompt is another mask"
    assert not torch.allclose(logits[1], logits[0]), "another image is another mask"


def losses_of(model: Sam2Adapter, images: Tensor, prompts: Tensor) -> Tensor:
    label = torch.zeros(1, 64, 64)
    label[:, 10:30, 20:40] = 1
    logits, *_ = model.decode(model.encode(images), prompts)
    losses = MaskLoss()(logits, [label])
    return losses["loss_mask"] + losses["loss_dice"]


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("encoder", [False, True])
def test_flags_say_what_trains(decoder: bool, encoder: bool) -> None:
    model = adapter(train_mask_decoder=decoder, train_image_encoder=encoder, dtype="bfloat16")
    own = {n.removeprefix("model."): p for n, p in model.named_parameters() if p.requires_grad}
    flags = {"mask_decoder": decoder, "vision_encoder": encoder}
    assert {n.split(".")[0] for n in own} == {part for part, flag in flags.items() if flag}
    assert {p.dtype for p in own.values()} <= {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16, torch.float32} and torch.bfloat16 in frozen
    if decoder:
        parts = {n.split(".")[1] for n in own if n.startswith("mask_decoder")}
        assert {"conv_s0", "conv_s1", "mask_tokens", "output_hypernetworks_mlps"} <= parts
        assert not parts & {"iou_prediction_head", "pred_obj_score_head"}


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("encoder", [False, True])
def test_gradients_reach_the_prompt_and_all_that_trains(decoder: bool, encoder: bool) -> None:
    model = adapter(train_mask_decoder=decoder, train_image_encoder=encoder)
    prompts = noise(1, C, seed=5).requires_grad_()
    losses_of(model, noise(1, 3, 64, 64), prompts).backward()
    assert float(prompts.grad.abs().sum()) > 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    # Only the best of the masks has a loss. The other masks' networks, their tokens' part of the
    # table apart, and whatever cancels out (a key's bias in a softmax) get a gradient of zero.
    zero = [
        n for n, p in model.named_parameters() if p.requires_grad and float(p.grad.abs().max()) == 0
    ]
    assert all("output_hypernetworks_mlps" in name for name in zero), zero
    assert len({name.split("mlps.")[1].split(".")[0] for name in zero}) == 3 * decoder


def test_a_frozen_encoder_is_not_recorded() -> None:
    model, images = adapter(train_mask_decoder=False), noise(1, 3, 64, 64)
    frozen = model.encode(images)
    assert not any(f.requires_grad for f in (frozen.stride4, frozen.stride8, frozen.stride16))
    model = adapter(train_mask_decoder=True)
    recorded = model.encode(images)
    assert recorded.stride4.requires_grad and not recorded.stride16.requires_grad
    model = adapter(train_image_encoder=True)
    assert model.encode(images).stride16.requires_grad
    with torch.no_grad():
        assert not model.encode(images).stride16.requires_grad


@pytest.mark.parametrize("decoder", [False, True])
def test_bfloat16_agrees_with_float32_roughly(decoder: bool) -> None:
    models = [adapter(dtype=d, train_mask_decoder=decoder).eval() for d in ("float32", "bfloat16")]
    models[1].model.load_state_dict(models[0].model.state_dict())
    results = []
    for model, enabled in zip(models, (False, True), strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(model.decode(model.encode(noise(1, 3, 64, 64)), noise(1, C, seed=1)))
    (logits, iou, _), (half, half_iou, _) = results
    assert half.dtype == half_iou.dtype == torch.float32
    torch.testing.assert_close(half_iou, iou, atol=0.05, rtol=0.1)
    if int(iou.argmax()) == int(half_iou.argmax()):
        assert float((logits - half).abs().max()) < 0.1 * float(logits.abs().max()) + 0.05


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (adapter(seed=s).model.state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[n], same[n]) for n in one)
    basis = "shared_image_embedding.positional_embedding"
    assert not torch.equal(one[basis], other[basis])
    assert torch.equal(one[basis], one["prompt_encoder.shared_embedding.positional_embedding"])
    for name in ("pos_embed", "pos_embed_window"):
        assert float(one[f"vision_encoder.backbone.{name}"].abs().sum()) > 0


def test_the_users_config_is_left_as_it_was() -> None:
    config = merged(GROUNDING_CONFIG, {})
    Sam2Adapter(128, config=config, dtype="float32")
    assert config == GROUNDING_CONFIG
