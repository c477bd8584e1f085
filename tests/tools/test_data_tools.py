"""tools/verify_dataset.py, make_splits.py and browse_dataset.py, called in this process."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.datasets.browse import pixels, text_of
from tests.broken_data import edit_annotations, images, two_points
from tests.conftest import ROOT

from .conftest import load_tool


@pytest.fixture
def call(monkeypatch, capfd):
    """Calls a tool; returns its exit status and what it printed."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def run(name, *args):
        module = load_tool(name)
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
        capfd.readouterr()
        try:
            code = module.main() or 0
        except SystemExit as end:
            code = end.code
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_sound_data_give_0_and_errors_1(call, experiment, tmp_path):
    out = tmp_path / "page"
    code, text, _ = call("verify_dataset", experiment, "--out", out)
    assert code == 0, text
    found = json.loads((out / "findings.json").read_text())
    assert found["counts"]["error"] == 0
    assert found["splits"]["train"]["frames"] == 4 and found["patients"]
    two_points(tmp_path)
    code, text, _ = call("verify_dataset", experiment, "--out", out)
    assert code == 1
    name = images(tmp_path, "train")[0].stem
    assert "fewer than 3" in text and name in text
    page = (out / "findings.html").read_text()
    assert "fewer than 3" in page and name not in page


def test_users_errors_give_2(call, experiment, tmp_path):
    code, _, err = call("verify_dataset", experiment, "--split", "tset", "--out", tmp_path / "o")
    assert code == 2 and "did you mean 'test'" in err
    code, _, err = call("verify_dataset", experiment, "--fix", tmp_path / "data" / "in")
    assert code == 2 and "outside of the data" in err
    code, _, err = call("make_splits", experiment, tmp_path / "s")
    assert code == 2 and "--ratios" in err
    code, _, err = call("browse_dataset", experiment, "--split", "trian")
    assert code == 2 and "did you mean 'train'" in err


def test_labels_of_another_size_are_mended_into_a_folder_that_trains(call, experiment, tmp_path):
    def drawn_smaller(data):
        size = data["images"][0]["width"]
        data["images"] = [{**image, "width": 40, "height": 40} for image in data["images"]]
        for annotation in data["annotations"]:
            annotation["segmentation"] = [[4, 4, 30, 4, 30, 38, 4, 38]]
        assert size == 64

    edit_annotations(tmp_path, "train", drawn_smaller)
    before = snapshot(tmp_path / "data")
    fixed = tmp_path / "fixed"
    code, text, _ = call("verify_dataset", experiment, "--out", tmp_path / "o", "--fix", fixed)
    assert code == 1 and "labels are drawn at 40 x 40 px" in text
    assert snapshot(tmp_path / "data") == before
    root = ["--cfg-options", f"data_root={fixed}"]
    code, text, _ = call("verify_dataset", experiment, "--out", tmp_path / "o", *root)
    assert code == 0, text


def test_splits_of_a_config_can_be_trained_on(call, experiment, tmp_path):
    out = tmp_path / "splits"
    code, text, _ = call(
        "make_splits", experiment, out, "--split", "train", "test", "--unit", "frame",
        "--ratios", "0.5", "0.25", "0.25",
    )  # fmt: skip
    assert code == 0, text
    assert [row["frames"] for row in json.loads((out / "splits.json").read_text())["splits"]]
    given = text.strip().splitlines()[-1].removeprefix("--cfg-options ").split()
    no_patients = [f"{s}_dataloader.dataset.patient=None" for s in ("train", "val", "test")]
    page = ["--out", tmp_path / "o", "--cfg-options", *given, *no_patients]
    code, text, _ = call("verify_dataset", experiment, *page)
    assert code == 0, text


def test_sheets_of_what_the_model_is_fed(call, experiment, tmp_path):
    out = tmp_path / "sheets"
    args = ["--samples", 2, "--variants", 2, "--out", out]
    code, text, _ = call("browse_dataset", experiment, *args)
    assert code == 0
    (path,) = out.glob("*.png")
    assert path.name == "train_01.png" and str(path) in text
    first = np.asarray(Image.open(path))
    assert first.std() > 10
    call("browse_dataset", experiment, *args)
    assert (np.asarray(Image.open(path)) == first).all()
    call("browse_dataset", experiment, *args, "--split", "test")
    assert (out / "test_01.png").is_file()


def test_what_is_drawn_is_what_is_fed(experiment):
    from mmengine.registry import DATASETS

    from projects.sa2va.config import load_config

    cfg = load_config(experiment, {"train_dataloader.dataset.augment": None})
    data = DATASETS.build(cfg.train_dataloader.dataset)
    item = data[0]
    size = data.processor.image_size
    wanted = Image.fromarray(data.image(0)).resize((size, size), Image.Resampling.BICUBIC)
    assert (pixels(item["grounding_pixels"]) == np.asarray(wanted)).all()
    text = text_of(data, item)
    assert "<IMG_CONTEXT> x 4" in text
    assert "«Sure, [SEG].<|im_end|>" in text
    assert "Please segment the blood vessel in this image." in text.split("«")[0]
    test = DATASETS.build(cfg.test_dataloader.dataset)
    assert "«" not in text_of(test, test[0])
