"""Angiograms made on the fly: physics of the tubes, labels, determinism, checks of the data."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from projects.sa2va.datasets import SyntheticVesselDataset
from projects.sa2va.datasets.hashes import split_hash
from projects.sa2va.datasets.integrity import check_dataset, check_splits
from projects.sa2va.datasets.leakage import check_unseen, training_record
from projects.sa2va.datasets.synthetic import AngiogramParams, PretrainingParams, render_frame
from projects.sa2va.datasets.synthetic.background import Canvas, light_field
from projects.sa2va.datasets.synthetic.parameters import LEAST_FIELD_MM
from projects.sa2va.datasets.synthetic.projection import path_length, tube_balls
from projects.sa2va.datasets.synthetic.real_background import BackgroundFrames, without_vessels
from projects.sa2va.datasets.synthetic.tubes import Lumen, Pieces
from projects.sa2va.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
SIZE = 128
FIELDS = [field.name for field in dataclasses.fields(PretrainingParams)]


def with_(**changes: object) -> PretrainingParams:
    return PretrainingParams.from_dict({**PretrainingParams().to_dict(), **changes})


def line(angle: float, tilt: float = 0.0, length: float = 60.0, size: int = 96) -> np.ndarray:
    """Points [N, 3] of a straight line through the middle of the picture."""
    way = np.linspace(-length / 2, length / 2, 41)[:, None]
    flat = [np.cos(tilt) * np.cos(angle), np.cos(tilt) * np.sin(angle), np.sin(tilt)]
    return way * np.array(flat) + np.array([size / 2 - 0.5, size / 2 - 0.5, 0.0])


# --- tubes ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(radius=st.floats(0.3, 6.0), angle=st.floats(0.0, 6.28), tilt=st.floats(-0.9, 0.9))
def test_a_tube_absorbs_by_its_volume(radius, angle, tilt):
    lumen = Lumen(96)
    points = line(angle, tilt)
    lumen.add([Pieces.of(points, np.full(len(points), radius))])
    # Rows of pixels sample a thin tube coarsely; the rounded ends are one sphere on top.
    volume = np.pi * radius**2 * 60.0
    coarse = 0.06 if radius > 2.5 else 0.2 if radius > 1 else 0.35
    assert volume * (1 - coarse) < lumen.path_px.sum()
    assert lumen.path_px.sum() < volume * (1 + coarse) + 4.5 * (radius + 0.4) ** 3


@settings(max_examples=10, deadline=None)
@given(radius=st.floats(2.0, 6.0), bend=st.floats(-0.02, 0.02), taper=st.floats(0.4, 1.0))
def test_the_fast_tube_is_the_union_of_balls(radius, bend, taper):
    way = np.linspace(-35, 35, 71)
    points = np.stack([way, bend * way**2, 0.2 * way], axis=1)
    radii = radius * np.linspace(1, taper, len(way))
    exact = path_length(*tube_balls(points, radii, 0.05), 96, 1.0, rays=3)
    lumen = Lumen(96)
    lumen.add([Pieces.of(points + np.array([47.5, 47.5, 0]), radii)])
    # At the rim the two smooth the same edge differently.
    deep = exact > 1.0 * radius * taper
    assert np.abs(lumen.path_px - exact)[deep].max() < 0.15 * radius + 0.4
    assert lumen.path_px.sum() == pytest.approx(exact.sum(), rel=0.06)


def test_tubes_add_where_they_cross_and_count_once_at_a_root():
    radius, points = 4.0, line(0.0)
    pieces = Pieces.of(points, np.full(len(points), radius))
    other = Pieces.of(line(1.2), np.full(len(points), radius))
    crossing, leaving = Lumen(96), Lumen(96)
    crossing.add([pieces, other])
    leaving.add([pieces, other], [None, (47.5, 47.5, radius)])
    assert crossing.path_px[47, 47] == pytest.approx(4 * radius, rel=0.1)
    assert leaving.path_px[47, 47] == pytest.approx(2 * radius, rel=0.1)
    far = np.hypot(*np.mgrid[-47.5:48, -47.5:48]) > 3.5 * radius
    assert np.array_equal(crossing.path_px[far], leaving.path_px[far])


def test_fine_tubes_are_not_joined_to_one_another():
    lines = [line(0.0, length=20), line(1.57, length=20) + np.array([30, 0, 0])]
    radii = [np.full(41, 0.8)] * 2
    lumen = Lumen(96)
    lumen.add([Pieces.of_fine(lines, radii, [1.0, 0.5])])
    assert lumen.path_px[47, 65] == 0
    assert lumen.path_px[47, 77] == pytest.approx(lumen.path_px[47, 47] / 2, rel=0.2)


# --- frames ---------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_on_a_plain_ground_a_frame_is_beer_lambert(seed):
    ground = np.full((SIZE, SIZE), 200, np.uint8)
    params = with_(scatter=(0, 0), blur_mm=(0, 0), mu_per_mm=(0.15, 0.15))
    frame = render_frame([seed], SIZE, params, ground)
    assert np.abs(frame.image - 200 * np.exp(-frame.vessel)).max() <= 0.51
    inside = cv2.erode(frame.mask, np.ones((3, 3), np.uint8)) > 0
    assert (frame.image[inside] < 200).all()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_labelled_pixels_are_darker_than_the_same_frame_without_contrast(seed):
    quiet = dict(noise=(0, 0), sharpening=(0, 0), gamma=(1, 1), motion_mm=(0, 0), catheter=0.0)
    with_contrast = render_frame([seed], SIZE, with_(mu_per_mm=(0.15, 0.15), **quiet))
    without = render_frame([seed], SIZE, with_(mu_per_mm=(1e-9, 1e-9), **quiet))
    assert np.array_equal(with_contrast.mask, without.mask)
    inside = cv2.erode(without.mask, np.ones((3, 3), np.uint8)) > 0
    if inside.sum() > 20:
        ratio = with_contrast.image[inside] / np.maximum(without.image[inside], 1.0)
        assert np.median(ratio) < 0.9


def test_labels_know_nothing_of_what_is_not_labelled():
    without = dict(twigs=(0, 0), strays=(0, 0), distractors=(0, 0), clutter=(0, 0), catheter=0.0)
    full = dict(twigs=(80, 80), strays=(8, 8), distractors=(3, 3))
    bare, busy = (
        render_frame([3], SIZE, with_(collimator=0.0, **more)) for more in (without, full)
    )
    assert bare.mask.any() and np.array_equal(bare.mask, busy.mask)
    assert not np.array_equal(bare.image, busy.image)
    assert (busy.vessel > 0).sum() > (bare.vessel > 0).sum()


def test_a_higher_threshold_labels_a_part_of_the_same_vessels():
    masks = [
        render_frame([4], SIZE, with_(min_label_mm=(mm, mm))).mask.astype(bool)
        for mm in (0.0, 1.2, 2.5, 50.0)
    ]
    for more, less in itertools.pairwise(masks):
        assert less.sum() < more.sum() and not (less & ~more).any()
    assert not masks[-1].any()


def test_frames_have_the_calibres_and_grey_levels_that_were_asked_for():
    params = with_(grey=(100, 100), collimator=0.0, sharpening=(0, 0))
    medians = [np.median(render_frame([i], SIZE, params).image) for i in range(8)]
    assert max(medians) < 104 and np.median(medians) == pytest.approx(100, abs=3)
    areas = [render_frame([i], SIZE, PretrainingParams()).mask.mean() for i in range(16)]
    assert 0.01 < np.median(areas) < 0.09


def test_the_blades_leave_a_part_of_the_smallest_picture_open():
    """Else there would be nothing that the exposure is set by."""
    closed = with_(collimator=1.0, field_of_view_mm=(LEAST_FIELD_MM, LEAST_FIELD_MM))
    for seed in range(20):
        assert render_frame([seed], 64, closed).image.std() > 0
        light, opened = light_field(
            np.random.default_rng(seed), Canvas(64, LEAST_FIELD_MM), 1.0, 0.3
        )
        assert 0.2 < opened.mean() < 1 and np.isfinite(light).all()
    for kind in (PretrainingParams, AngiogramParams):
        values = {**kind().to_dict(), "field_of_view_mm": (LEAST_FIELD_MM - 1, 90.0)}
        with pytest.raises(ConfigError, match=r"field_of_view_mm.*\n.*20 mm or more"):
            kind.from_dict(values)


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_come_back_from_plain_values():
    params = with_(twigs=[1, 2], catheter=0)
    assert params.twigs == (1.0, 2.0)
    assert PretrainingParams.from_dict(params.to_dict()) == params


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("bad", [-1e9, float("nan"), "wide", None, (2.0, 1.0), (1.0, 2.0, 3.0)])
def test_bad_parameters_are_named(name, bad):
    is_pair = isinstance(getattr(PretrainingParams(), name), tuple)
    value = (bad, bad) if is_pair and not isinstance(bad, tuple) else bad
    with pytest.raises(ConfigError, match=name) as error:
        with_(**{name: value})
    assert error.value.found and error.value.expected and "PretrainingParams" in error.value.fix


def test_an_unknown_parameter_is_named():
    with pytest.raises(ConfigError, match=r"tweegs.*twigs"):
        PretrainingParams.from_dict({"tweegs": (0, 1)})


# --- the data set ---------------------------------------------------------------------------------


@pytest.fixture
def make(processor):
    def build(frames: int = 3, **options) -> SyntheticVesselDataset:
        return SyntheticVesselDataset(frames, size=96, processor=processor, **options)

    return build


def same(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in ("grounding_pixels", "masks"))


def test_an_item_depends_on_seed_epoch_and_index_alone(make):
    one, two = make(augment=dict(hflip=0.5)), make(augment=dict(hflip=0.5))
    forwards = [one[i] for i in range(9)]
    backwards = [two[i] for i in reversed(range(9))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    for i in range(9):
        for j in range(i):
            assert not same(forwards[i], forwards[j]), (i, j)
    assert not same(make(seed=1)[0], forwards[0])
    worker = pickle.loads(pickle.dumps(one))
    assert same(worker[7], forwards[7])


def test_image_and_mask_of_an_item_belong_together(make):
    data = make()
    item = data[5]  # epoch 1, index 2
    assert np.array_equal(item["masks"][0], data.masks(2, epoch=1)[0])
    assert not np.array_equal(data.masks(2, epoch=1), data.masks(2))
    assert np.array_equal(data.image(2), data.image(2, epoch=0))


def test_chosen_frames_look_the_same(make):
    chosen = make(5, indices=[3, 1])
    assert np.array_equal(chosen.image(0), make(5).image(3))
    assert chosen.frame_ids == ["S0000003", "S0000001"]


def test_test_items_ask_the_phrase(make):
    data = make(test_mode=True, phrase="coronary artery")
    item = data[1]
    assert item["meta"]["phrases"] == ["coronary artery"]
    assert np.array_equal(item["truth"], data.masks(1))
    # The picture is the frame's own, of epoch 0, and of what training reads normalised.
    shown = data.processor.prediction_item(data.image(1, epoch=0), ["coronary artery"])
    for name in ("grounding_pixels", "pixel_values"):
        assert torch.equal(item[name], shown[name]), name
        assert not torch.equal(item[name], data[0][name]), name
    assert np.array_equal(data.image(1), make(phrase="coronary artery").image(1))
    trained = {"grounding_pixels": make()[1]["grounding_pixels"][None]}
    seen = data.processor.normalised(trained)["grounding_pixels"][0]
    assert torch.allclose(item["grounding_pixels"], seen, atol=1e-5)
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(frames=0), "frames"),
        (dict(frames=True), "frames"),
        (dict(size=20), "size"),
        (dict(patient=dict(type="regex", pattern="(.*)")), "background"),
        (dict(background=dict(image_dir="x", share=0)), "share"),
        (dict(params=dict(noise=3)), "noise"),
    ],
)
def test_bad_options_are_named(processor, options, word):
    with pytest.raises(ConfigError, match=word):
        SyntheticVesselDataset(**{"frames": 2, "processor": processor, **options})


def test_the_identity_is_of_all_that_decides_the_frames(make, tmp_path):
    hashes = {
        split_hash(data)
        for data in (
            make(),
            make(4),
            make(seed=1),
            make(phrase="artery"),
            make(params=dict(noise=(1, 1))),
            make(4, indices=[0, 1, 2]),
            make(4, indices=[2, 1, 0]),
        )
    }
    assert len(hashes) == 7
    assert split_hash(make(data_root=str(tmp_path))) in hashes


def test_without_files_there_is_nothing_to_read_or_to_leak(make, coco_like):
    data = make(2000)
    assert check_dataset(data, progress=False).warnings == []
    assert "patient" in check_splits({"train": data, "val": coco_like}, progress=False)[0]
    record = training_record(data)
    assert record["pixels"] == "" and record["patients"] == {}
    check_unseen({"val": coco_like}, record, "a checkpoint")
    check_unseen({"val": data}, training_record(coco_like), "a checkpoint")


def test_the_config_part_trains_on_made_frames_and_evaluates_real_ones(processor):
    part = Config.fromfile(ROOT / "configs/_base_/datasets/synthetic_pretraining.py")
    train = part.train_dataloader.dataset.to_dict()
    assert train.pop("type") == "SyntheticVesselDataset" and "ann_file" not in train
    data = SyntheticVesselDataset(processor=processor, **train)
    assert len(data) == 4000 and data[4001]["masks"].shape == (1, 512, 512)
    assert part.val_dataloader.dataset.type == "CocoVesselDataset"
    assert part.train_dataloader.sampler.type == "EpochSampler"


# --- real grounds ---------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    """A frame of 96 x 96 with vessels, as a hospital would have it."""
    return render_frame([99, seed], 96, PretrainingParams()).image


@pytest.fixture
def folder(tmp_path):
    for seed in range(4):
        Image.fromarray(picture(seed)).save(tmp_path / f"P{seed}_0.png")
    return tmp_path


@pytest.fixture
def coco_like(processor, tmp_path):
    """Files that are evaluated: two of the frames of ``folder``'s kind."""
    (tmp_path / "val").mkdir()
    for seed in (3, 7):
        Image.fromarray(picture(seed)).save(tmp_path / "val" / f"{seed}.png")
    return BackgroundFrames("val", processor=processor, data_root=tmp_path)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_vessels_are_taken_out_and_the_rest_stays(seed):
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.linspace(0, 40, 256), np.linspace(100, 140, 256))
    empty = slope + rng.normal(0, 3, slope.shape)
    params = with_(
        scatter=(0, 0), mu_per_mm=(0.15, 0.15), field_of_view_mm=(130, 130), strays=(0, 0)
    )
    ground = np.clip(empty, 0, 255).astype(np.uint8)
    frame = render_frame([seed], 256, params, ground)
    cleaned = without_vessels(frame.image)
    depth = 1 - np.exp(-frame.vessel)
    inside, outside = depth > 0.15, cv2.dilate(depth, np.ones((25, 25))) < 0.01
    before, after = (
        np.median(np.abs(cv2.blur(image.astype(float), (5, 5)) - slope)[inside])
        for image in (frame.image, cleaned)
    )
    assert after < 0.25 * before
    assert np.abs(cleaned.astype(float) - frame.image)[outside].mean() < 2.5
    assert cleaned[inside].std() > 2


def test_real_grounds_are_used_in_their_share(make, folder):
    always = make(background=dict(image_dir=str(folder), share=1.0))
    never, drawn = make(background=dict(image_dir=str(folder), share=1e-9)), make()
    assert np.array_equal(never.image(0), drawn.image(0))
    assert not np.array_equal(always.image(0), drawn.image(0))
    assert np.array_equal(always.masks(1)[0] & 1, always.masks(1)[0])
    again = pickle.loads(pickle.dumps(always))
    assert np.array_equal(again.image(2, epoch=3), always.image(2, epoch=3))
    assert "test" not in str(always[0]["meta"]["image_path"])


def test_the_identity_follows_the_files(make, folder):
    background = dict(image_dir=str(folder))
    before = split_hash(make(background=background))
    assert before == split_hash(make(background=background))
    Image.fromarray(picture(9)).save(folder / "P1_0.png")
    assert split_hash(make(background=background)) != before


def test_grounds_that_are_evaluated_are_found(make, folder, coco_like):
    data = make(background=dict(image_dir=str(folder)))
    with pytest.raises(DataError, match=r"train/P3_0\.png = val/3\.png"):
        check_splits({"train": data, "val": coco_like}, progress=False)
    with pytest.raises(DataError, match="val/3"):
        check_unseen({"val": coco_like}, training_record(data), "a checkpoint")


def test_patients_of_grounds_are_known(make, folder):
    data = make(
        background=dict(image_dir=str(folder)), patient=dict(type="regex", pattern=r"^(P\d)")
    )
    (names,) = training_record(data)["patients"].values()
    assert len(names) == 4
    assert data.patients == [None] * 3


def test_broken_grounds_are_reported(make, folder):
    with pytest.raises(DataError, match="is no folder"):
        make(background=dict(image_dir=str(folder / "nowhere")))
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        make(background=dict(image_dir=str(folder)))
