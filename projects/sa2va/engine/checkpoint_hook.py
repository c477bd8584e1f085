"""When checkpoints are saved, and which are deleted: always after the newer one is on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from projects.sa2va.checkpoints.store import sync_folder
from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.files import write_atomic

from .folders import remove_on_first

POINTER = "last_checkpoint"


@HOOKS.register_module()
class Sa2VACheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which writes first and deletes afterwards.

    mmengine 0.10.7 deletes the oldest checkpoint, and the best so far, before it writes the next:
    a full disk or a kill at that moment costs a checkpoint. Here the disk needs room for one more.

    Only checkpoints of this run, and of the run that it goes on, are ever deleted.

    Args:
        save_total_limit: newest ``iter_*.pth`` that are kept; the best one is kept besides. -1
            keeps all.
        kwargs: those of mmengine's hook, without ``max_keep_ckpts``.
    """

    def __init__(self, save_total_limit: int = 2, **kwargs: Any) -> None:
        if "max_keep_ckpts" in kwargs:
            raise ConfigError(
                found=f"max_keep_ckpts={kwargs['max_keep_ckpts']!r}",
                expected="save_total_limit, which deletes after the next checkpoint is written",
                fix=f"save_total_limit={kwargs['max_keep_ckpts']!r}",
            )
        if save_total_limit == 0:
            raise ConfigError(
                found="save_total_limit=0",
                expected="1 or more: the newest checkpoint is what a run goes on from",
                fix="save_total_limit=1, or -1 to keep all",
            )
        super().__init__(max_keep_ckpts=-1, **kwargs)
        self.save_total_limit = save_total_limit
        self.saved: list[int] = []  # iterations of the checkpoints that are there, oldest first

    def before_train(self, runner: Any) -> None:
        """Finds the checkpoints of the run that goes on."""
        super().before_train(runner)
        if "keep_ckpt_ids" in runner.message_hub.runtime_info:
            self.saved = [int(step) for step in runner.message_hub.get_info("keep_ckpt_ids")]
        # The run may have been killed after writing and before deleting.
        self._delete_oldest()

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        path = Path(self.out_dir) / name
        # What is about to be deleted is named too: a run killed before that deletes it later.
        steps = [*(s for s in self.saved if s != step), step]
        runner.message_hub.update_info("keep_ckpt_ids", steps)
        runner.message_hub.update_info("last_ckpt", str(path))
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                sync_folder(Path(self.out_dir))
                pointer = Path(runner.work_dir) / POINTER
                write_atomic(pointer, lambda file: file.write(str(path).encode()))
        except (CheckpointError, OSError) as error:
            raise _not_saved(path, error, Path(runner.work_dir)) from error
        self.last_ckpt = str(path)
        self.saved = steps
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        while 0 < self.save_total_limit < len(self.saved):
            remove_on_first(Path(self.out_dir) / self.filename_tmpl.format(self.saved.pop(0)))

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        """As mmengine's, but the earlier best is deleted when the new one is written."""
        if not self.save_best:
            return
        before = self._best()
        # mmengine deletes what it finds here, before it writes.
        self._set_best(dict.fromkeys(before))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except (CheckpointError, OSError) as error:
            path = Path(self.out_dir) / "best_*.pth"
            raise _not_saved(path, error, Path(runner.work_dir)) from error
        now = {key: new or before.get(key) for key, new in self._best().items()}
        self._set_best(now)
        # By name: in a copy of a work dir the stored path is that of the original's file.
        names = {Path(path).name for path in now.values() if path}
        for old in {Path(path).name for path in before.values() if path} - names:
            remove_on_first(Path(self.out_dir) / old)

    def _best(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return {"": self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths.get("")
        else:
            self.best_ckpt_path_dict = paths


def _not_saved(path: Path, error: Exception, work_dir: Path) -> CheckpointError:
    """The error of a checkpoint that could not be written, with the one that is intact."""
    found = error.found if isinstance(error, CheckpointError) else f"{path}: {error}"
    pointer = work_dir / POINTER
    newest = pointer.read_text().strip() if pointer.is_file() else ""
    if newest and Path(newest).exists():
        return CheckpointError(
            found=found,
            expected=f"room for one checkpoint more than are kept; {newest} is intact",
            fix="free some space (or choose a smaller default_hooks.checkpoint.save_total_limit), "
            f"then go on after {Path(newest).stem} with the same command and --resume",
        )
    return CheckpointError(
        found=found,
        expected="room for the first checkpoint; there is no earlier one of this run",
        fix="free some space or choose another --work-dir, then start again",
    )
