"""The evaluator: every frame once, the same numbers on one process and two, no silent copy."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from PIL import Image

from projects.sa2va.errors import ConfigError
from projects.sa2va.evaluation import METRIC_NAMES, VesselMetric
from projects.sa2va.evaluation.guards import SuspectResultsError
from projects.sa2va.evaluation.writer import decode_mask
from projects.sa2va.models.outputs import Prediction

SHAPE = (24, 32)
FRAMES = 7
PHRASES = ["left artery", "right artery"]


def truth_of(index: int, phrases: int) -> torch.Tensor:
    rng = np.random.default_rng([1, index])
    truth = torch.from_numpy((rng.random((phrases, *SHAPE)) < 0.3).astype(np.uint8))
    if index == 2:
        truth[0] = 0
    return truth


def item(number: int, folder: Path, /, **changes):
    """One frame's (truth, meta, prediction); every third frame is asked for two phrases."""
    phrases = PHRASES[: 2 if number % 3 == 0 else 1]
    rng = np.random.default_rng([2, number])
    truth = truth_of(number, len(phrases))
    noise = torch.from_numpy(rng.random(truth.shape, dtype=np.float32))
    seg = [number != 4] * len(phrases)
    prediction = Prediction(
        (0.4 * truth + 0.6 * noise) * seg[0], ["Sure, [SEG]." if seg[0] else "No."] * len(seg), seg
    )
    image = folder / f"image{number}.png"
    if not image.exists():
        Image.fromarray(rng.integers(0, 255, SHAPE, dtype=np.uint8)).save(image)
    meta = {
        "index": number,
        "frame": f"frame{number}",
        "patient": f"P{number % 3}",
        "phrases": phrases,
        "image_path": str(image),
        "height": SHAPE[0],
        "width": SHAPE[1],
    }
    for key, value in changes.items():
        target = prediction if hasattr(prediction, key) else meta
        setattr(prediction, key, value) if target is prediction else meta.update({key: value})
    return truth, meta, prediction


def feed(metric: VesselMetric, items) -> None:
    truth, meta, predictions = zip(*items, strict=True)
    metric.process({"truth": list(truth), "meta": list(meta)}, list(predictions))


def provenance() -> dict:
    return {
        "answer_mode": "forced",
        "checkpoint": {"file": "best.pth", "sha256": "0" * 64},
        "weights": {"parts": [], "notes": []},
        "config": "demo.py",
        "split": {"file": "test.json", "sha256": "1" * 64},
        "split_name": "test",
        "threshold_source": {"kind": "config"},
    }


def run(folder: Path, out_dir: Path | None, **kwargs) -> dict[str, float]:
    metric = VesselMetric(threshold=0.5, out_dir=out_dir, **kwargs)
    metric.set_provenance(provenance())
    feed(metric, [item(index, folder) for index in range(FRAMES)])
    return metric.evaluate(FRAMES)


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_numbers_are_those_of_the_masks(tmp_path):
    metrics = run(tmp_path, None)
    dice, tp, wanted, positives = [], 0, 0, 0
    for index in range(FRAMES):
        truth, _, prediction = item(index, tmp_path)
        for mask, probability in zip(truth.numpy() > 0, prediction.probabilities, strict=True):
            cut = probability.numpy() >= np.float32(0.5)
            if mask.any() or cut.any():
                dice.append(2 * (mask & cut).sum() / (mask.sum() + cut.sum()))
            tp, wanted = tp + (mask & cut).sum(), wanted + mask.sum()
            positives += cut.sum()
    assert metrics["vessel/dice"] == pytest.approx(np.mean(dice))
    assert metrics["vessel/pooled_dice"] == pytest.approx(2 * tp / (wanted + positives))
    assert metrics["vessel/seg_emission_rate"] == 9 / 10
    assert set(metrics) >= {f"vessel/patient_{name}" for name in ("dice", "iou", "recall")}


def test_numbers_only_writes_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    metrics = run(tmp_path / "in", None)
    assert metrics == run(tmp_path / "in", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert all(path.name.startswith("image") for path in (tmp_path / "in").iterdir())


def test_results_folder_is_complete_and_agrees_with_itself(tmp_path):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    flat = run(tmp_path / "in", out, pictures={"best": 1, "worst": 1, "random": 1})

    def refuse(name):
        raise AssertionError(name)

    text = (out / "metrics.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert str(tmp_path) not in text + (out / "per_frame.csv").read_text()
    assert {key: report[key] for key in provenance()} == provenance()
    assert report["threshold"] == 0.5 and report["threshold_rule"] == "probability >= threshold"
    assert report["mean"] == {name: flat[f"vessel/{name}"] for name in report["mean"]}
    # frame 2 has an empty truth, frame 4 an empty prediction
    assert report["undefined"]["mean"] == {
        **dict.fromkeys(("dice", "iou", "specificity", "accuracy"), 0),
        **dict.fromkeys(("precision", "recall"), 1),
    }
    assert [patient["rows"] for patient in report["per_patient"].values()] == [6, 2, 2]
    counts = report["counts"]
    assert (counts["frames"], counts["rows"], counts["phrases"]) == (7, 10, 2)
    assert (counts["patients"], counts["without_seg"]) == (3, 1)
    assert [warning.split(" answers")[0] for warning in report["warnings"]] == ["1 of 10"]

    masks = json.loads((out / "masks.json").read_text(), parse_constant=refuse)
    records = report["per_frame"]
    assert len(masks) == len(records) == 10
    for entry, record in zip(masks, records, strict=True):
        assert (entry["image_id"], entry["category"]) == (record["frame"], record["phrase"])
        mask = decode_mask(entry["segmentation"])
        saved = np.asarray(Image.open(out / "masks" / f"{record['file']}.png"))
        assert np.array_equal(mask, saved == 255)
        levels = np.asarray(Image.open(out / "probabilities" / f"{record['file']}.png"))
        assert np.array_equal(mask[levels != 128], levels[levels != 128] > 128)
        assert mask.sum() == record["counts"]["tp"] + record["counts"]["fp"]
    assert len(list((out / "pictures").iterdir())) == 4


def test_undefined_rows_of_the_report_are_null(tmp_path):
    """Frame 2 has an empty truth; here the prediction is empty as well."""
    metric = VesselMetric(threshold=0.5, out_dir=tmp_path / "out", pictures=None)
    feed(metric, [item(2, tmp_path, index=0, probabilities=torch.zeros(1, *SHAPE))])
    flat = metric.evaluate(1)
    assert math.isnan(flat["vessel/dice"]) and math.isnan(flat["vessel/patient_dice"])
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    record = report["per_frame"][0]
    assert record["dice"] is None and record["recall"] is None and record["specificity"] == 1
    assert report["mean"]["dice"] is None and report["undefined"]["mean"]["dice"] == 1
    assert report["answer_mode"] is None and "answer_mode" in report["warnings"][0]


def test_an_undefined_score_never_becomes_the_best_checkpoint():
    hook = CheckpointHook(interval=1, save_best="vessel/dice", rule="greater")
    better = hook.is_better_than["vessel/dice"]
    assert not better(math.nan, hook.init_value_map["greater"]) and not better(math.nan, 0.1)
    assert better(0.2, 0.1)


def test_threshold_is_inclusive_and_float32(tmp_path):
    probabilities = torch.zeros(1, *SHAPE)
    probabilities[0, 0, 0] = torch.tensor(0.7)  # the float32 next to 0.7 lies below it
    probabilities[0, 0, 1] = torch.nextafter(torch.tensor(0.7), torch.tensor(0.0))
    probabilities[0, 0, 2] = 1
    metric = VesselMetric(threshold=0.7)
    feed(metric, [item(1, tmp_path, index=0, probabilities=probabilities)])
    counts = metric.results[0].rows[0].counts
    assert counts.tp + counts.fp == 2


def copies(folder: Path, number: int, frames: int, **kwargs) -> VesselMetric:
    """A metric that was fed ``frames`` frames, ``number`` of them predicted to the pixel."""
    metric = VesselMetric(
        threshold=0.5, out_dir=folder, pictures=None, save_probabilities="none", **kwargs
    )
    metric.set_provenance(provenance())
    for index in range(frames):
        truth, meta, prediction = item(1, folder, index=index, frame=f"f{index}")
        prediction.probabilities = truth.float()
        if index >= number:
            prediction.probabilities[0, 0, 0] = 1 - prediction.probabilities[0, 0, 0]
        feed(metric, [(truth, meta, prediction)])
    return metric


@pytest.mark.parametrize(("number", "frames"), [(2, 20), (3, 3), (1, 1), (20, 20)])
def test_a_copy_of_the_truth_is_an_error_after_all_is_written(tmp_path, number, frames):
    metric = copies(tmp_path, number, frames)
    message = f"{number} of {frames} non-empty masks were predicted to the pixel"
    with pytest.raises(SuspectResultsError, match=message) as caught:
        metric.evaluate(frames)
    assert "max_exact_copies" in caught.value.fix and "valid=false" in caught.value.found
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["valid"] is False and message in report["invalid_because"][0]
    assert len(report["per_frame"]) == frames and (tmp_path / "per_frame.csv").is_file()


@pytest.mark.parametrize(
    ("number", "frames", "limit"), [(1, 20, 0.05), (1, 2, 0.05), (0, 3, 0), (3, 3, 1.0)]
)
def test_few_copies_or_a_switched_off_check_are_no_error(tmp_path, number, frames, limit):
    copies(tmp_path, number, frames, max_exact_copies=limit).evaluate(frames)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["valid"] is True and report["invalid_because"] == report["warnings"] == []
    assert report["counts"]["exact_copies"] == number


def test_copies_are_an_error_in_validation_too(tmp_path):
    metric = VesselMetric(threshold=0.5)
    truth, meta, prediction = item(1, tmp_path, index=0)
    prediction.probabilities = truth.float()
    feed(metric, [(truth, meta, prediction)])
    with pytest.raises(SuspectResultsError, match="1 of 1"):
        metric.evaluate(1)


def test_all_numbers_of_a_run_stand_in_its_report(tmp_path):
    (tmp_path / "in").mkdir()
    metric = VesselMetric(threshold=0.5, out_dir=tmp_path / "out", metric_set="all", pictures=None)
    metric.dataset_meta = {"frames": FRAMES, "frames_of_split": FRAMES + 2}
    metric.set_provenance(provenance())
    metric.set_grid((SHAPE[0] // 2, SHAPE[1] // 2))
    feed(metric, [item(index, tmp_path / "in", spacing=(0.3, 0.2)) for index in range(FRAMES)])
    flat = metric.evaluate(FRAMES)
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["metrics"] == list(METRIC_NAMES) == list(report["mean"])
    for kind in ("mean", "patient_mean", "pooled"):
        for name, interval in report["intervals"][kind].items():
            assert (interval is None) == (kind == "pooled" and name.startswith("hd95")), name
            assert interval is None or interval[0] <= report[kind][name] <= interval[1]
    assert report["intervals"]["unit"] == "patient" and report["intervals"]["clusters"] == 3
    # frame 2 has an empty truth, frame 4 (one phrase) an empty prediction
    undefined = report["undefined"]["mean"]
    assert undefined["hd95"] == undefined["assd_mm"] == 2 and undefined["average_precision"] == 1
    assert undefined["centreline_precision"] == undefined["skeleton_recall"] == 1
    assert report["counts"]["empty_prediction"] == 1
    oracle = report["oracle"]
    assert oracle["grid"] == [12, 16]
    assert 0 < oracle["mean"]["dice"] < 1
    assert oracle["mean"]["recall"] == np.mean(
        [r["oracle"]["recall"] for r in report["per_frame"] if r["oracle"]["recall"] is not None]
    )
    assert report["warnings"][1].startswith("Scored 7 of the 9 frames of the split")
    assert report["per_frame"][0]["spacing_mm"] == [0.3, 0.2]
    truths = [record["truth"] for record in report["per_frame"]]
    assert len(set(truths)) == len(truths) == 10
    assert flat["vessel/patient_cldice"] == report["patient_mean"]["cldice"]
    header = (tmp_path / "out" / "per_frame.csv").read_text().splitlines()[0].split(",")
    assert header[3 : 3 + len(METRIC_NAMES)] == list(METRIC_NAMES)


def test_empty_frames_are_no_copies(tmp_path):
    metric = VesselMetric(threshold=0.5, out_dir=tmp_path / "out", pictures=None)
    metric.set_provenance(provenance())
    feed(metric, [item(2, tmp_path, index=0, probabilities=torch.zeros(1, *SHAPE))])
    metric.evaluate(1)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"] == []


def test_builds_from_the_registry_in_mmengines_evaluator(tmp_path):
    evaluator = Evaluator({"type": "VesselMetric", "threshold": 0.5, "prefix": "v"})
    truth, meta, prediction = item(1, tmp_path, index=0)
    evaluator.process(data_samples=[prediction], data_batch={"truth": [truth], "meta": [meta]})
    assert 0 < evaluator.evaluate(1)["v/dice"] <= 1


def _worker(rank: int, folder: str) -> None:
    """One of two processes: rank 0 has the odd frames and rank 1 the even ones, in two batches."""
    root = Path(folder)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2
    )
    metric = VesselMetric(threshold=0.5, out_dir=root / "two")
    metric.set_provenance(provenance())
    mine = [item(index, root / "in") for index in range(FRAMES) if index % 2 != rank]
    feed(metric, mine[2:])
    feed(metric, mine[:2])
    result = {"metrics": metric.evaluate(FRAMES)}

    # Both processes hold frame 1, as a padding sampler would have it: both must refuse.
    doubled = VesselMetric(threshold=0.5)
    feed(doubled, [item(index, root / "in") for index in ({0, 1} if rank else {1})])
    try:
        doubled.evaluate(2)
    except ConfigError as error:
        result["error"] = str(error)
    (root / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path):
    (tmp_path / "in").mkdir()
    one = run(tmp_path / "in", tmp_path / "one")
    # Forked, since importing everything afresh in each process takes longer than all other tests.
    context = torch.multiprocessing.start_processes(
        _worker, (str(tmp_path),), nprocs=2, join=False, start_method="fork"
    )
    end = time.monotonic() + 60
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the two processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    for rank in (0, 1):
        result = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert result["metrics"] == one
        assert "doubled: 1 (frame1)" in result["error"] and "ExactSampler" in result["error"]
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_postprocessing_changes_masks_and_scores_but_no_maps(tmp_path):
    (tmp_path / "in").mkdir()
    plain, done = tmp_path / "plain", tmp_path / "done"
    before = run(tmp_path / "in", plain, pictures=None, metric_set="all", bootstrap=0)
    after = run(
        *(tmp_path / "in", done),
        pictures=None,
        metric_set="all",
        bootstrap=0,
        postprocess={"min_area": 9},
    )
    assert after["vessel/betti0_error"] != before["vessel/betti0_error"]
    assert after["vessel/average_precision"] == before["vessel/average_precision"]
    old, new = files(plain), files(done)
    kinds = {name.split("/")[0] for name in old if old[name] != new[name]}
    assert kinds == {"masks", "masks.json", "metrics.json", "per_frame.csv"}
    report = json.loads((done / "metrics.json").read_text())
    assert report["postprocess"] == {"low": None, "min_area": 9}
    one = json.loads((plain / "metrics.json").read_text())
    assert one["postprocess"] is None and one["calibration"] == report["calibration"]
    with pytest.raises(ConfigError, match=r"low=0\.9"):
        VesselMetric(threshold=0.5, postprocess={"low": 0.9})


def test_calibration_is_of_all_pixels_and_costs_validation_nothing(tmp_path):
    run(tmp_path, tmp_path / "out", pictures={"best": 1, "worst": 0, "random": 0})
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["calibration"]
    rows = [item(index, tmp_path) for index in range(FRAMES)]
    truth = np.concatenate([truth.numpy().ravel() for truth, _, _ in rows])
    maps = np.concatenate([prediction.probabilities.numpy().ravel() for _, _, prediction in rows])
    assert found["pixels"] == truth.size
    assert found["brier"] == pytest.approx(np.mean((maps.astype(float) - truth) ** 2))
    assert found["ece_interval"][0] < found["ece"] * 1.5
    assert (tmp_path / "out" / "calibration.png").is_file()
    metric = VesselMetric(threshold=0.5)
    feed(metric, [item(0, tmp_path)])
    assert "calibration" not in metric.results[0].rows[0].scores.parts
