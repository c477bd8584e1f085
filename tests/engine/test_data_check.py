"""What was trained on is never evaluated: mutations of sound splits, each caught by both tools."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.checkpoints import DATA_SPLITS_FILE, TRAINING_RECORD
from projects.sa2va.engine import data_check
from projects.sa2va.engine.start import prepare_test, prepare_training
from projects.sa2va.errors import DataError
from tests.broken_data import edit_annotations, images, same_image, same_patient, truncated_image

from .conftest import save

pytestmark = pytest.mark.usefixtures("no_model")


def changed_frame(folder):
    """The first test frame is in the training split: brightened, and compressed as a JPEG."""
    same_image(folder)
    path = folder / "data" / "train" / "images" / "P0900_F01.png"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L")).astype(float)
    copy = Image.fromarray(np.clip(pixels * 1.1 + 12, 0, 255).astype(np.uint8))
    copy.save(path.with_suffix(".jpg"), quality=85)
    path.unlink()

    def rename(data):
        data["images"][-1]["file_name"] = "P0900_F01.jpg"

    edit_annotations(folder, "train", rename)


LEAKS = {
    same_image: ("images in two splits", "frames that it was trained on"),
    changed_frame: ("near-duplicates in two splits", "near-duplicates of frames that it was"),
    same_patient: ("patients in two splits", "patients of test that it was trained on"),
}


def train_without_test(experiment, tmp_path):
    """Record of a run whose config had no test split, so that nothing was refused."""
    text = experiment.read_text()
    experiment.write_text(text + "test_dataloader = None\ntest_cfg = None\ntest_evaluator = None\n")
    run = tmp_path / "run"
    prepare_training(str(experiment), work_dir=str(run))
    experiment.write_text(text)
    splits = json.loads((run / DATA_SPLITS_FILE).read_text())
    return splits["train"].pop(TRAINING_RECORD)


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_leaks_are_refused(experiment, tmp_path, leak):
    sound = tmp_path / "sound"
    shutil.copytree(tmp_path / "data", sound)
    leak(tmp_path)
    by_config, by_record = LEAKS[leak]
    with pytest.raises(DataError, match=by_config):
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    with pytest.raises(DataError, match=by_config):
        prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))

    record = train_without_test(experiment, tmp_path)
    # The leak is taken out of the config's data, but not out of the weights.
    shutil.rmtree(tmp_path / "data")
    sound.rename(tmp_path / "data")
    prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))
    checkpoint = str(save(tmp_path / "iter_2.pth", **{TRAINING_RECORD: record}))
    with pytest.raises(DataError, match=by_record) as caught:
        prepare_test(str(experiment), checkpoint=checkpoint, work_dir=str(tmp_path / "run"))
    assert "iter_2.pth" in str(caught.value)
    # A run that starts from these weights has seen the frames, too.
    options = {"load_from": checkpoint}
    with pytest.raises(DataError, match=by_record):
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"), cfg_options=options)


def test_a_frame_that_was_looked_at_is_allowed(experiment, tmp_path):
    changed_frame(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    name = next(word for word in caught.value.found.split() if word.startswith("test/"))
    options = {"allow_near_duplicates": [name]}
    prepare_training(str(experiment), work_dir=str(tmp_path / "run"), cfg_options=options)
    prepare_test(
        str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"), cfg_options=options
    )


def test_a_test_where_the_training_data_are_not(experiment, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(data_check, "print_log", lambda text, **kwargs: said.append(text))
    truncated_image(tmp_path)
    prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "data" / "train")
    checkpoint = str(save(tmp_path / "iter_2.pth"))
    prepare_test(str(experiment), checkpoint=checkpoint, work_dir=str(tmp_path / "run"))
    assert len([text for text in said if "was not compared with the test" in text]) == 2
    assert any("does not say which frames it was trained on" in text for text in said)


def test_what_is_evaluated_may_be_validated_and_tested_alone(experiment, tmp_path):
    record = train_without_test(experiment, tmp_path)
    frames = len(images(tmp_path, "train"))
    assert len(record["pixels"]) == 16 * frames
    checkpoint = str(save(tmp_path / "iter_2.pth", **{TRAINING_RECORD: record}))
    prepare_test(str(experiment), checkpoint=checkpoint, work_dir=str(tmp_path / "run"))
