"""Everything that can be wrong is found before anything expensive is touched."""

from __future__ import annotations

import json
import os

import pytest
import torch
from mmengine.config import Config

from projects.sa2va.checkpoints import DATA_SPLITS_FILE, store
from projects.sa2va.engine import data_check
from projects.sa2va.engine.resume import find_newest_checkpoint, set_resume
from projects.sa2va.engine.start import (
    prepare_test,
    prepare_training,
    starting_point,
)
from projects.sa2va.errors import CheckpointError, ConfigError, DataError, SetupError
from tests.broken_data import (
    WAYS,
    edit_annotations,
    images,
    same_patient,
    truncated_image,
)

from .conftest import resume, save

pytestmark = pytest.mark.usefixtures("no_model")


# ---------------------------------------------------------------------------------------- data


def test_sound_data_pass_and_their_hashes_are_stored(experiment, tmp_path):
    cfg = prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    assert cfg.work_dir == str(tmp_path / "run")
    splits = json.loads((tmp_path / "run" / DATA_SPLITS_FILE).read_text())
    assert {split: entry["frames"] for split, entry in splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert len({entry["hash"] for entry in splits.values()}) == 3
    assert all(len(entry["hash"]) == 64 for entry in splits.values())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_broken_data(experiment, tmp_path, way):
    seen_by_test_alone, texts = WAYS[way]
    way(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    assert all(text in str(caught.value) for text in texts), caught.value
    assert not (tmp_path / "run" / DATA_SPLITS_FILE).exists()
    if seen_by_test_alone:
        with pytest.raises(DataError):
            prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))
    else:
        prepare_test(str(experiment), checkpoint=None, work_dir=str(tmp_path / "run"))


def test_hashes_of_an_earlier_run_survive_a_refused_one(experiment, tmp_path):
    run = tmp_path / "run"
    prepare_training(str(experiment), work_dir=str(run))
    before = (run / DATA_SPLITS_FILE).read_bytes()
    truncated_image(tmp_path)
    with pytest.raises(DataError):
        prepare_training(str(experiment), work_dir=str(run))
    assert {p.name for p in run.iterdir()} == {DATA_SPLITS_FILE}
    assert (run / DATA_SPLITS_FILE).read_bytes() == before


def test_all_of_a_data_sets_faults_come_at_once(experiment, tmp_path):
    for path in images(tmp_path, "train")[:2]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    assert all(path.name in caught.value.found for path in images(tmp_path, "train")[:2])


def test_what_is_odd_but_no_error_is_said(experiment, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(data_check, "print_log", lambda text, **kwargs: said.append(text))
    frame = images(tmp_path, "val")[0].name

    def without_labels(data):
        image = next(i for i in data["images"] if i["file_name"] == frame)
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] != image["id"]]

    edit_annotations(tmp_path, "val", without_labels)
    prepare_training(str(experiment), work_dir=str(tmp_path / "run"))
    assert len(said) == 1
    assert said[0].startswith("val: 1 frames with an empty mask")
    assert frame in said[0]


def test_other_processes_leave_the_data_to_the_first(experiment, tmp_path, monkeypatch):
    same_patient(tmp_path)
    monkeypatch.setenv("RANK", "1")
    prepare_training(str(experiment), work_dir=str(tmp_path / "run"), distributed=True)
    assert not (tmp_path / "run" / DATA_SPLITS_FILE).exists()


# -------------------------------------------------------------------------------------- config


def test_unknown_key_comes_first(experiment, tmp_path):
    truncated_image(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'max_iters'"):
        prepare_training(
            str(experiment), work_dir=str(tmp_path / "run"), cfg_options={"train_cfg.max_iter": 3}
        )
    assert not (tmp_path / "run").exists()


def test_seed_and_options_win_over_the_config(experiment, tmp_path):
    cfg = prepare_training(
        str(experiment),
        work_dir=str(tmp_path / "run"),
        seed=7,
        cfg_options={"train_cfg.max_iters": 3},
    )
    assert cfg.randomness.seed == 7
    assert cfg.train_cfg.max_iters == 3
    assert cfg.env_cfg.dist_cfg.backend == ("nccl" if torch.cuda.is_available() else "gloo")


def test_test_config_holds_nothing_of_training(experiment, tmp_path):
    checkpoint = save(tmp_path / "iter_1.pth")
    cfg = prepare_test(
        str(experiment),
        checkpoint=str(checkpoint),
        work_dir=str(tmp_path / "run"),
        out=str(tmp_path / "out"),
        show_dir=str(tmp_path / "shown"),
    )
    assert not [key for key in cfg if key.startswith(("train", "val", "optim", "param"))]
    assert cfg.load_from == str(checkpoint)
    assert cfg.resume is False
    assert cfg.test_cfg.out_dir == str(tmp_path / "out")
    assert cfg.test_evaluator.show_dir == str(tmp_path / "shown")
    assert (tmp_path / "out").is_dir()


# ------------------------------------------------------------------------------------ work dir


@pytest.mark.parametrize("inner", ["", "deeper/run"])
def test_work_dir_is_a_file(experiment, tmp_path, inner):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(SetupError, match="cannot be written") as caught:
        prepare_training(str(experiment), work_dir=str(tmp_path / "taken" / inner))
    assert "--work-dir" in caught.value.fix
    assert (tmp_path / "taken").read_text() == "mine"


def test_folders_of_test_results_are_checked_as_well(experiment, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for argument in ("work_dir", "out", "show_dir"):
        folders = {"work_dir": str(tmp_path / "run"), argument: str(tmp_path / "taken")}
        with pytest.raises(SetupError, match="taken cannot be written"):
            prepare_test(str(experiment), checkpoint=None, **folders)


def test_metrics_of_a_test_are_chosen_before_anything_is_loaded(experiment, tmp_path):
    folder = str(tmp_path / "run")
    cfg = prepare_test(str(experiment), checkpoint=None, work_dir=folder, metrics=["cldice"])
    assert cfg.test_evaluator.metric_set == ["cldice"]
    with pytest.raises(ConfigError, match="did you mean 'cldice'"):
        prepare_test(str(experiment), checkpoint=None, work_dir=folder, metrics=["cl_dice"])


def test_disk_without_room(experiment, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(SetupError, match="No space left"):
        prepare_training(str(experiment), work_dir=str(tmp_path / "run"))


def test_default_work_dir_is_named_after_the_config(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_training(str(experiment)).work_dir == "work_dirs/experiment"
    assert (tmp_path / "work_dirs" / "experiment").is_dir()


# -------------------------------------------------------------------------------------- resume


def test_auto_in_an_empty_folder_starts_afresh(experiment, tmp_path):
    cfg = resume(experiment, tmp_path / "run")
    assert cfg.resume is False
    assert cfg.load_from is None


def test_auto_takes_what_last_checkpoint_names_and_its_seed(experiment, tmp_path):
    run = tmp_path / "run"
    began = prepare_training(str(experiment), work_dir=str(run), seed=11)
    newest = save(run / "iter_2.pth", seed=11, cfg=began.pretty_text)
    save(run / "iter_9.pth")
    (run / "last_checkpoint").write_text(f"{newest}\n")
    cfg = resume(experiment, run)
    assert cfg.resume is True
    assert cfg.load_from == str(newest)
    assert cfg.randomness.seed == 11


def test_last_checkpoint_names_a_missing_file(experiment, tmp_path):
    run = tmp_path / "run"
    save(run / "iter_2.pth")
    (run / "last_checkpoint").write_text(str(run / "iter_4.pth"))
    with pytest.raises(CheckpointError) as caught:
        resume(experiment, run)
    assert "names 'iter_4.pth', which is not there" in caught.value.found
    assert "--resume <checkpoint>" in caught.value.fix


def test_moved_work_dir(tmp_path):
    save(tmp_path / "before" / "iter_2.pth")
    pointer = tmp_path / "before" / "last_checkpoint"
    pointer.write_text(str(tmp_path / "before" / "iter_2.pth"))
    (tmp_path / "before").rename(tmp_path / "after")
    found = find_newest_checkpoint(str(tmp_path / "after"))
    assert found == str(tmp_path / "after" / "iter_2.pth")


def test_resume_from_a_missing_file(experiment, tmp_path):
    save(tmp_path / "run" / "iter_2.pth")
    with pytest.raises(CheckpointError, match=r"did you mean 'iter_2\.pth'"):
        resume(experiment, tmp_path / "run", str(tmp_path / "run" / "iter_3.pth"))


@pytest.mark.parametrize("key", ["load_from", "resume"])
def test_what_is_loaded_is_read_first(experiment, tmp_path, key):
    path = tmp_path / "iter_2.pth"
    path.write_text("no checkpoint")
    options = {"cfg_options": {"load_from": str(path)}} if key == "load_from" else {}
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        prepare_training(
            str(experiment),
            work_dir=str(tmp_path / "run"),
            resume=str(path) if key == "resume" else None,
            **options,
        )


def test_preparing_leaves_the_tensors_of_a_checkpoint_on_the_disk(
    experiment, tmp_path, monkeypatch
):
    mapped, real = [], store.safe_torch_load
    monkeypatch.setattr(
        store,
        "safe_torch_load",
        lambda path, *, mmap=False: mapped.append(mmap) or real(path, mmap=mmap),
    )
    path = str(save(tmp_path / "iter_2.pth"))
    model = {"model": {"type": "Sa2VAModel"}}
    starting_point(Config({**model, "load_from": path}))
    starting_point(Config({**model, "init_from": {"checkpoint": path, "parts": "all"}}))
    set_resume(Config({"randomness": {"seed": 0}}), path, None)
    prepare_test(str(experiment), checkpoint=path, work_dir=str(tmp_path / "run"))
    assert mapped == [True] * 4


def test_load_from_a_missing_file(experiment, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        prepare_training(
            str(experiment),
            work_dir=str(tmp_path / "run"),
            cfg_options={"load_from": str(tmp_path / "none.pth")},
        )


def test_load_from_is_read_first_also_where_there_is_nothing_to_resume(experiment, tmp_path):
    options = {"load_from": str(tmp_path / "none.pth")}
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        resume(experiment, tmp_path / "run", cfg_options=options)


def test_best_checkpoint_cannot_be_resumed(experiment, tmp_path):
    best = save(tmp_path / "best_vessel_dice_iter_2.pth", training_state=False)
    with pytest.raises(CheckpointError, match="holds no optimizer") as caught:
        resume(experiment, tmp_path / "run", str(best))
    assert "load_from" in caught.value.fix


def test_checkpoint_to_test_is_missing(experiment, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        prepare_test(
            str(experiment), checkpoint=str(tmp_path / "x.pth"), work_dir=str(tmp_path / "run")
        )
