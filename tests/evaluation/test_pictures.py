"""Which frames are drawn, and what the drawings show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from projects.sa2va.errors import DataError
from projects.sa2va.evaluation.metrics import Scores
from projects.sa2va.evaluation.overlap import Counts
from projects.sa2va.evaluation.pictures import (
    BOTH_COLOUR,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    PictureChoice,
    choose,
    difference,
    draw_all,
)
from projects.sa2va.evaluation.rows import FrameResult, Row
from projects.sa2va.evaluation.writer import encode_mask


def with_counts(*counts: Counts) -> list[FrameResult]:
    return [
        FrameResult(k, f"f{k}", None, "", (Row("vessel", Scores(c), True, "", f"f{k}"),))
        for k, c in enumerate(counts)
    ]


def with_masks(folder, shape=(40, 60), number=4) -> list[FrameResult]:
    rng, frames = np.random.default_rng(0), []
    for index in range(number):
        path = folder / f"image{index}.png"
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
        truth, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
        truth[10:20], prediction[10 + index : 23] = True, True
        tp = int((truth & prediction).sum())
        counts = Counts(tp, int(prediction.sum()) - tp, int(truth.sum()) - tp, 0)
        stem = f"f{index}"
        row = Row(
            "血管 vessel",
            *(Scores(counts), True, "", stem),
            prediction_rle=encode_mask(prediction),
            truth_rle=encode_mask(truth),
        )
        frames.append(FrameResult(index, stem, None, str(path), (row,)))
    return frames


@settings(deadline=None)
@given(
    st.lists(st.builds(Counts, *[st.integers(0, 5)] * 4), max_size=12),
    *[st.integers(0, 4)] * 3,
    st.integers(0, 3),
)
def test_choice_takes_the_extremes_and_no_row_twice(counts, best, worst, drawn, seed):
    choice = PictureChoice(best, worst, drawn, seed)
    chosen = choose(with_counts(*counts), choice)
    indices = [item.frame.index for item in chosen]
    assert len(set(indices)) == len(indices)
    defined = [c.metrics()["dice"] for c in counts if not math.isnan(c.metrics()["dice"])]
    kinds = {kind: [i.dice for i in chosen if i.kind == kind] for kind in ("best", "worst")}
    assert kinds["best"] == sorted(defined, reverse=True)[:best]
    assert kinds["worst"] == sorted(defined)[: min(worst, max(0, len(defined) - best))]
    assert len(chosen) == len(kinds["best"] + kinds["worst"]) + min(
        drawn, len(counts) - len(kinds["best"] + kinds["worst"])
    )
    assert chosen == choose(with_counts(*counts), choice)


def test_the_seed_decides_the_random_frames():
    frames = with_counts(*[Counts(k, 1, 1, 1) for k in range(20)])
    runs = {
        tuple(item.frame.index for item in choose(frames, PictureChoice(0, 0, 3, seed)))
        for seed in range(5)
    }
    assert len(runs) > 1


def test_file_names_say_kind_rank_dice_and_frame():
    frames = with_counts(Counts(3, 1, 1, 5), Counts(0, 0, 0, 9))
    names = [item.file_name for item in choose(frames, PictureChoice(1, 1, 1))]
    assert names == ["best_01_dice0.750_f0.png", "random_01_diceundefined_f1.png"]


def test_difference_colours_by_kind_of_error():
    prediction, truth = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    out = difference(prediction, truth, np.full((1, 4, 3), 100, np.uint8))
    assert out[0].tolist() == [
        *map(list, (BOTH_COLOUR, PREDICTION_COLOUR, TRUTH_COLOUR)),
        [35, 35, 35],
    ]


@pytest.mark.parametrize("shape", [(40, 60), (600, 450), (300, 30)])
def test_draws_every_chosen_frame_and_the_overview(tmp_path, shape):
    frames = with_masks(tmp_path, shape, number=2)
    paths = draw_all(frames, PictureChoice(1, 0, 1), tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(
        path.name for path in paths
    )
    assert [path.name.split("_")[0] for path in paths] == ["best", "random", "overview.png"]
    for path in paths:
        with Image.open(path) as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
        assert {BOTH_COLOUR, PREDICTION_COLOUR, TRUTH_COLOUR} <= colours


def test_same_input_gives_the_same_bytes(tmp_path):
    frames = with_masks(tmp_path)
    drawn = [draw_all(frames, PictureChoice(1, 1, 0), tmp_path / name) for name in ("a", "b")]
    assert [path.read_bytes() for path in drawn[0]] == [path.read_bytes() for path in drawn[1]]


def test_panels_are_where_they_belong(tmp_path):
    """A white truth band, and a difference with as many orange pixels as there are errors."""
    frames = with_masks(tmp_path, number=3)
    path = draw_all(frames, PictureChoice(0, 1, 0), tmp_path / "pictures")[0]
    picture = np.asarray(Image.open(path).convert("RGB"))
    scale = 512 // 60
    wrong = frames[2].rows[0].counts
    bottom = picture[:-34]  # without the legend
    orange = (bottom == PREDICTION_COLOUR).all(-1).sum()
    blue = (bottom == TRUTH_COLOUR).all(-1).sum()
    assert (orange, blue) == (wrong.fp * scale**2, wrong.fn * scale**2)


def test_an_image_that_moved_or_changed_is_named(tmp_path):
    frames = with_masks(tmp_path, number=1)
    Image.new("L", (8, 8)).save(frames[0].image_path)
    with pytest.raises(DataError, match=r"image0\.png is 8 x 8 pixels"):
        draw_all(frames, PictureChoice(), tmp_path / "pictures")


def test_nothing_chosen_draws_nothing(tmp_path):
    assert draw_all(with_masks(tmp_path), PictureChoice(0, 0, 0), tmp_path / "pictures") == []
    assert not (tmp_path / "pictures").exists()
