"""The API: same predictions as tools/test.py, any images, any order of errors, one pass a frame."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from mmengine.registry import RUNNERS
from PIL import Image

from projects.sa2va.engine.start import prepare_test
from projects.sa2va.errors import ConfigError, DataError, MemoryFullError
from projects.sa2va.inference import Sa2VAInferencer, inference_model, init_model
from projects.sa2va.inference.sources import best_checkpoint


@pytest.mark.parametrize("mode", ["forced", "generate"])
def test_predictions_are_those_of_a_test(trained, frames, tmp_path, mode):
    options = {
        "model.answer_mode": mode,
        "test_evaluator.save_probabilities": "npz",
        "test_dataloader.batch_size": 2,
    }
    best = best_checkpoint(trained / "run")
    cfg = prepare_test(
        str(trained / "experiment.py"),
        checkpoint=str(best),
        work_dir=str(tmp_path),
        out=str(tmp_path / "out"),
        cfg_options=options,
    )
    cfg.experiment_name = f"inference_{mode}"
    RUNNERS.build(cfg).test()
    stored = sorted((tmp_path / "out" / "probabilities").glob("*.npz"))
    masks = sorted((tmp_path / "out" / "masks").glob("*.png"))
    results = Sa2VAInferencer(trained / "experiment.py", best, cfg_options=options)(frames)
    assert len(results) == len(stored) == len(masks) > 1
    assert mode == "generate" or any(0 < result.mask.mean() < 1 for result in results)
    for result, maps, mask in zip(results, stored, masks, strict=True):
        with np.load(maps) as content:
            expected = content["probability"]
        np.testing.assert_array_equal(result.probability.astype(np.float16), expected)
        np.testing.assert_array_equal(result.mask, np.asarray(Image.open(mask)) > 0)


def test_the_presence_threshold_is_a_setting_of_what_chooses(trained) -> None:
    best = best_checkpoint(trained / "run")
    said = {}
    for mode, threshold in (("forced", None), ("choice", None), ("choice", 0.2)):
        options = {"model.answer_mode": mode}
        options |= {} if threshold is None else {"model.presence_threshold": threshold}
        model = Sa2VAInferencer(trained / "experiment.py", best, cfg_options=options)
        said[mode, threshold] = model.settings["presence_threshold"]
    assert list(said.values()) == [None, 0.5, 0.2]


def test_all_forms_of_an_image_give_the_same_map(inferencer, frames):
    pixels = np.asarray(Image.open(frames[0]))
    (expected,) = inferencer(frames[0])
    forms = [str(frames[0]), pixels, Image.open(frames[0]), pixels.astype(np.uint16) * 257]
    # Stretched to its own range, the 16-bit image is the 8-bit one where that fills its range.
    low, high = int(pixels.min()), int(pixels.max())
    forms = forms if (low, high) == (0, 255) else forms[:3]
    for result in inferencer(forms):
        np.testing.assert_array_equal(result.probability, expected.probability)


def test_order_sizes_and_failures(inferencer, frames, tmp_path, caplog):
    cut = tmp_path / "cut.png"
    cut.write_bytes(frames[0].read_bytes()[:150])
    wide = np.zeros((20, 50), np.uint8)
    images = [wide, cut, str(frames[1]), wide.T, np.zeros((2, 2, 2, 2)), str(frames[0])]
    with caplog.at_level(logging.WARNING):
        results = inferencer(images)
    assert [bool(r) for r in results] == [True, False, True, True, False, True]
    shapes = [r.probability.shape for r in results if r]
    assert shapes == [(20, 50), (64, 64), (50, 20), (64, 64)]
    for bad in (results[1], results[4]):
        assert isinstance(bad.error, DataError)
        with pytest.raises(DataError):
            _ = bad.mask
    (again,) = inferencer(frames[0])
    np.testing.assert_array_equal(results[5].probability, again.probability)


def test_failures_are_said_at_the_end(inferencer, frames, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "projects.sa2va.inference.inferencer.print_log", lambda text, **more: said.append(text)
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes(b"")
    inferencer([cut, frames[0]])
    (text,) = said
    assert text.startswith("1 of 2 images have no prediction") and "cut.png" in text


def test_several_phrases_encode_each_image_once(inferencer, frames, monkeypatch):
    model = inferencer._pipeline.model
    calls = {"vit": 0, "sam2": 0}
    visual, encode = model.mllm.visual_tokens, model.grounding.encode

    def count(name, function):
        def counted(images):
            calls[name] += len(images)
            return function(images)

        return counted

    monkeypatch.setattr(model.mllm, "visual_tokens", count("vit", visual))
    monkeypatch.setattr(model.grounding, "encode", count("sam2", encode))
    phrases = ["blood vessel", "catheter", "Where is the stent?"]
    results = inferencer(frames, phrases)
    assert calls == {"vit": len(frames), "sam2": len(frames)}
    for result in results:
        assert result.probabilities.shape == (3, 64, 64)
        assert result.phrases == phrases and result.seg_emitted == [True] * 3
        with pytest.raises(ValueError, match="3 phrases were asked"):
            _ = result.mask
    alone = inferencer(frames, "catheter")
    for many, one in zip(results, alone, strict=True):
        np.testing.assert_allclose(many.probabilities[1], one.probability, atol=1e-6)


def test_stream_reads_ahead_a_little_and_no_more(inferencer):
    taken = 0

    def images():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8), np.uint8)

    results = inferencer.stream(images())
    for number in range(1, 8):
        assert next(results)
        # Three batches of two wait, one is predicted, one is being taken.
        assert taken <= number + 2 * 5
    results.close()


def test_threshold_cuts_without_predicting_again(inferencer, frames, monkeypatch):
    (result,) = inferencer(frames[0])
    assert result.threshold == inferencer.threshold == 0.5
    monkeypatch.setattr(inferencer._pipeline.model, "test_step", lambda data: pytest.fail("run"))
    cut = float(np.median(result.probability))
    np.testing.assert_array_equal(
        result.with_threshold(cut).mask, result.probability >= np.float32(cut)
    )
    assert result.with_threshold(1.0).mask.sum() == 0


def test_threshold_may_be_a_number_of_numpy(inferencer, frames):
    (result,) = inferencer(frames[0], threshold=np.float32(0.25))
    assert result.threshold == 0.25 and type(result.threshold) is float
    assert result.with_threshold(np.float64(0.5)).threshold == 0.5


@pytest.mark.parametrize("threshold", [0, 1.5, "0.4", True, -1])
def test_no_threshold(inferencer, frames, threshold):
    with pytest.raises(ConfigError, match="threshold="):
        inferencer(frames[0], threshold=threshold)


def test_postprocessing_of_the_config_is_applied(trained, frames):
    options = {"test_evaluator.postprocess": dict(min_area=4097)}
    with_it = Sa2VAInferencer(trained / "run", cfg_options=options)
    (result,) = with_it(frames[0])
    assert (result.probability >= 0.5).any() and not result.mask.any()
    assert "pieces of fewer than 4097 px" in with_it.threshold_text


def test_saved_files(inferencer, frames, tmp_path):
    (result,) = inferencer(frames[0], "blood vessel")
    outputs = ("mask", "probability", "probability-npz", "overlay")
    paths = result.save(tmp_path / "new", outputs)
    stem = frames[0].stem
    assert [p.relative_to(tmp_path / "new").as_posix() for p in paths] == [
        f"masks/{stem}.png",
        f"probabilities/{stem}.png",
        f"probabilities/{stem}.npz",
        f"overlays/{stem}.png",
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])) == 255, result.mask)
    levels = np.asarray(Image.open(paths[1]))
    np.testing.assert_array_equal(levels, np.rint(result.probability * 255))
    with np.load(paths[2]) as content:
        np.testing.assert_allclose(content["probability"], result.probability, atol=5e-4)
    overlay = np.asarray(Image.open(paths[3])).astype(int)
    changed = (overlay != result.image).any(axis=-1)
    np.testing.assert_array_equal(changed & ~result.mask, False)
    assert changed[result.mask].mean() > 0.9


def test_saved_files_of_several_phrases_have_names_of_their_own(inferencer, frames, tmp_path):
    (result,) = inferencer(frames[0], ["blood vessel", "catheter"])
    names = sorted(path.name for path in result.save(tmp_path, ["mask"]))
    stem = frames[0].stem
    assert names == [f"{stem}__blood-vessel.png", f"{stem}__catheter.png"]


def test_unknown_output(inferencer, frames, tmp_path):
    (result,) = inferencer(frames[0])
    for outputs in (["masks"], "mask", [], ["csv"]):
        with pytest.raises(ConfigError, match="outputs"):
            result.save(tmp_path, outputs)


def test_show_returns_the_overlay(inferencer, frames, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title: shown.append(title))
    (result,) = inferencer(frames[0])
    picture = result.show()
    assert shown == [frames[0].name]
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.overlay()))


def test_full_card_is_explained(inferencer, frames, monkeypatch):
    def full(data):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inferencer._pipeline.model, "test_step", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 24 * 2**30))
    with pytest.raises(MemoryFullError, match=r"a batch of 1, 1\.0 of 24\.0 GiB free") as error:
        inferencer(frames[0])
    assert "--batch-size 1" in error.value.fix


def test_names_of_mmsegmentation(trained, frames, tmp_path):
    model = init_model(trained / "experiment.py", best_checkpoint(trained / "run"), device="cpu")
    one = inference_model(model, str(frames[0]))
    many = inference_model(model, [str(frames[0])])
    np.testing.assert_array_equal(one.mask, many[0].mask)
    (tmp_path / "cut.png").write_bytes(b"x")
    with pytest.raises(DataError):
        inference_model(model, tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"precision": "bf8"}, "bf8"),
        ({"placement": "shard"}, "placement 'shard'"),
        ({"threshold": 2}, "--threshold 2"),
    ],
)
def test_wrong_settings_are_said_before_a_model_is_built(trained, monkeypatch, settings, said):
    monkeypatch.setattr(
        "projects.sa2va.inference.inferencer.build_model", lambda *a: pytest.fail("built")
    )
    with pytest.raises(Exception) as error:
        Sa2VAInferencer(trained / "run", **settings)
    assert said in str(error.value) and error.value.fix


def test_a_config_without_test_data_is_enough(trained, frames, inferencer):
    options = {"test_dataloader": None}
    model = Sa2VAInferencer(trained / "run", batch_size=3, cfg_options=options)
    assert model._pipeline.batch_size == 3
    np.testing.assert_array_equal(model(frames[0])[0].mask, inferencer(frames[0])[0].mask)


def test_data_parallel_is_the_same(trained, frames, inferencer, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(b"x")
    images = [*map(str, frames), np.zeros((9, 7), np.uint8), cut, str(frames[0])]
    expected = inferencer(images)
    settings = dict(placement="data-parallel", gpus=2, batch_size=2, device="auto")
    with Sa2VAInferencer(trained / "run", **settings) as two:
        results = two(images)
        first = next(two.stream(images))  # given up after one: the next call is not confused
        again = two(images)
    np.testing.assert_array_equal(first.probability, expected[0].probability)
    for found in (results, again):
        assert [bool(r) for r in found] == [bool(r) for r in expected]
        for a, b in zip(found, expected, strict=True):
            assert a.name == b.name
            if b:
                np.testing.assert_array_equal(a.probability, b.probability)
