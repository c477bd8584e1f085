"""A checkpoint is deleted only when a newer one is on the disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS

from projects.sa2va.checkpoints import pack_message_hub, unpack_message_hub
from projects.sa2va.engine.checkpoint_hook import Sa2VACheckpointHook
from projects.sa2va.errors import CheckpointError, ConfigError


class Run:
    """A runner as far as the hook needs one; writes files, or folders as DeepSpeed does."""

    def __init__(self, work_dir: Path, *, folders: bool = False, limit: int = 2, **hub) -> None:
        work_dir.mkdir(exist_ok=True)
        self.work_dir, self.folders = str(work_dir), folders
        self.message_hub = MessageHub(name="run")
        unpack_message_hub(
            self.message_hub, {"scalars": {}, "runtime_info": hub, "resumed_keys": {}}
        )
        self.logger, self.epoch, self.iter = logging.getLogger("run"), 0, 0
        self.seen: list[set[str]] = []  # what was there when each was written
        self.full = False
        self.hook = HOOKS.build(
            dict(
                type="Sa2VACheckpointHook",
                by_epoch=False,
                interval=1,
                save_total_limit=limit,
                save_best="dice",
                rule="greater",
            )
        )
        self.hook.before_train(self)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        self.seen.append(self.there())
        if self.full:
            raise CheckpointError(f"{filename} cannot be written: No space left", "room", "free")
        path = Path(out_dir, filename)
        if self.folders and filename.startswith("iter"):
            path.mkdir(exist_ok=True)
            (path / "shard.pt").write_text("x")
        else:
            path.write_text("x")

    def there(self) -> set[str]:
        return {path.name for path in Path(self.work_dir).glob("*.pth")}

    def pointer(self) -> str:
        return Path((Path(self.work_dir) / "last_checkpoint").read_text()).name

    def train(self, *steps: int) -> None:
        for step in steps:
            self.hook._save_checkpoint_with_step(self, step, {"iter": step})

    def validate(self, step: int, dice: float) -> None:
        self.iter = step
        self.hook.after_val_epoch(self, {"dice": dice})

    def stored(self) -> dict:
        """What the newest checkpoint would hold of the message hub."""
        return pack_message_hub(self.message_hub)["runtime_info"]


@pytest.mark.parametrize("folders", [False, True])
def test_the_newest_stay_and_the_oldest_goes_last(tmp_path: Path, folders: bool) -> None:
    run = Run(tmp_path / "run", folders=folders)
    run.train(1, 2, 3, 4)
    assert run.there() == {"iter_3.pth", "iter_4.pth"}
    assert run.pointer() == "iter_4.pth"
    # The two before it were there while each was written.
    assert run.seen[2:] == [{"iter_1.pth", "iter_2.pth"}, {"iter_2.pth", "iter_3.pth"}]


def test_the_same_iteration_again_is_one_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.train(1, 2, 2, 2)
    assert run.there() == {"iter_1.pth", "iter_2.pth"}


def test_no_limit_keeps_all(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", limit=-1)
    run.train(1, 2, 3)
    assert len(run.there()) == 3


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_is_kept_besides_and_replaced_when_the_next_is_written(
    tmp_path: Path, limit: int
) -> None:
    run = Run(tmp_path / "run", limit=limit)
    for step, dice in [(1, 0.5), (2, 0.4), (3, 0.3), (4, 0.6)]:
        run.train(step)
        run.validate(step, dice)
    newest = {f"iter_{step}.pth" for step in range(5 - limit, 5)}
    assert run.there() == newest | {"best_dice_iter_4.pth"}
    writing_best = run.seen[-2]  # then the training state again, with the new best's name
    assert "best_dice_iter_1.pth" in writing_best
    assert run.stored()["best_ckpt"].endswith("best_dice_iter_4.pth")


def test_a_best_that_is_not_beaten_stays_after_many_validations(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for step in range(1, 6):
        run.train(step)
        run.validate(step, 1 / step)
    assert "best_dice_iter_1.pth" in run.there()
    assert run.hook.best_ckpt_path.endswith("best_dice_iter_1.pth")


def test_a_run_killed_before_deleting_deletes_when_it_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.train(1, 2)
    run.hook._delete_oldest = lambda: None
    run.train(3)
    assert len(run.there()) == 3
    again = Run(tmp_path / "run", **run.stored())
    assert again.there() == {"iter_2.pth", "iter_3.pth"}
    again.train(4)
    assert again.there() == {"iter_3.pth", "iter_4.pth"}


def test_what_another_run_wrote_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "iter_900.pth").write_text("another run's")
    run = Run(tmp_path / "run", limit=1)
    run.train(1, 2)
    assert run.there() == {"iter_2.pth", "iter_900.pth"}


def test_a_copy_of_a_work_dir_leaves_the_originals_best(tmp_path: Path) -> None:
    first = Run(tmp_path / "first")
    first.train(1)
    first.validate(1, 0.5)
    second = Run(tmp_path / "second", **first.stored())
    second.train(2)
    second.validate(2, 0.9)
    assert "best_dice_iter_1.pth" in first.there()
    assert second.there() == {"iter_2.pth", "best_dice_iter_2.pth"}


@pytest.mark.parametrize("best", [False, True])
def test_a_full_disk_costs_nothing_and_says_what_is_intact(tmp_path: Path, best: bool) -> None:
    run = Run(tmp_path / "run")
    run.train(1, 2)
    run.validate(2, 0.5)
    before = run.there()
    run.full = True
    with pytest.raises(CheckpointError) as caught:
        run.validate(3, 0.9) if best else run.train(3)
    assert run.there() == before == {"iter_1.pth", "iter_2.pth", "best_dice_iter_2.pth"}
    assert run.pointer() == "iter_2.pth"
    assert "No space left" in caught.value.found
    assert f"{run.work_dir}/iter_2.pth is intact" in caught.value.expected
    assert "--resume" in caught.value.fix and "iter_2" in caught.value.fix


def test_the_first_checkpoint_does_not_fit(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.full = True
    with pytest.raises(CheckpointError, match="no earlier one of this run") as caught:
        run.train(1)
    assert "--resume" not in caught.value.fix


def test_a_full_disk_at_the_pointer(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path / "run")
    run.train(1, 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("projects.sa2va.engine.checkpoint_hook.write_atomic", full)
    with pytest.raises(CheckpointError, match=r"iter_2\.pth is intact"):
        run.train(3)
    assert "iter_1.pth" in run.there()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"max_keep_ckpts": 3}, "save_total_limit=3"), ({"save_total_limit": 0}, "-1 to keep all")],
)
def test_wrong_limits(wrong: dict, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sa2VACheckpointHook(**wrong)
    assert text in caught.value.fix


def test_several_measures_each_have_a_best(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.hook = Sa2VACheckpointHook(
        interval=1, by_epoch=False, save_best=["dice", "iou"], rule="greater"
    )
    run.hook.before_train(run)
    for step, dice, iou in [(1, 0.5, 0.5), (2, 0.6, 0.4), (3, 0.4, 0.6)]:
        run.iter = step
        run.hook.after_val_epoch(run, {"dice": dice, "iou": iou})
    assert run.there() == {"best_dice_iter_2.pth", "best_iou_iter_3.pth"}
