"""Train, validation and test loops.

The test and validation loops hand the model ``batch['inputs']`` and nothing else; truth goes to
the evaluator only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator

from projects.sa2va.datasets.integrity import split_hash
from projects.sa2va.evaluation import VesselMetric
from projects.sa2va.evaluation.writer import write_atomic
from projects.sa2va.models import is_sharded

from .runner import bare_model


@LOOPS.register_module()
class Sa2VATrainLoop(IterBasedTrainLoop):
    """Iteration-based training that resumes exactly.

    The sampler is told how many samples were used instead of loading and dropping them, and every
    iteration seeds torch from (seed, iteration, rank), so that dropout and sampled points of a
    resumed run are those of the uninterrupted one.
    """

    def run(self) -> torch.nn.Module:
        """Trains to ``max_iters``."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader.sampler.skip(self._iter * self.dataloader.batch_size)
        self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if self._time_to_validate():
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _time_to_validate(self) -> bool:
        if self.runner.val_loop is None or self._iter < self.val_begin:
            return False
        return self._iter % self.val_interval == 0 or self._iter == self._max_iters

    def run_iter(self, data_batch: dict[str, Any]) -> None:
        """Runs one iteration.

        Args:
            data_batch: a training batch of the collate function.
        """
        seed = self.runner.seed or 0
        torch.manual_seed(seed + 1_000_003 * self._iter + 7_919 * get_rank())
        super().run_iter(data_batch)


class _PredictLoop:
    """Shared by validation and test."""

    def _predict(self, step: Any, stage: str) -> None:
        done = 0
        for index, batch in enumerate(self.dataloader):
            self.runner.call_hook(f"before_{stage}_iter", batch_idx=index, data_batch=batch)
            with torch.no_grad():
                outputs = step({"inputs": batch["inputs"]})
            truth = {"truth": batch["truth"], "meta": batch["meta"]}
            self.evaluator.process(data_samples=outputs, data_batch=truth)
            self.runner.call_hook(
                f"after_{stage}_iter", batch_idx=index, data_batch=batch, outputs=outputs
            )
            done = index + 1
        self._keep_in_step(step, done)

    def _keep_in_step(self, step: Any, done: int) -> None:
        """Under ZeRO-3 every forward pass gathers weights from all processes.

        A process with fewer frames would leave the others waiting, so it repeats its data set's
        first frame, whose prediction is dropped.
        """
        if get_world_size() == 1 or not is_sharded(bare_model(self.runner.model)):
            return
        most = torch.tensor(done)
        all_reduce(most, "max")
        for _ in range(int(most) - done):
            batch = self.dataloader.collate_fn([self.dataloader.dataset[0]])
            with torch.no_grad():
                step({"inputs": batch["inputs"]})


@LOOPS.register_module()
class Sa2VAValLoop(_PredictLoop, ValLoop):
    """Validation during training: metrics only, no files."""

    def run(self) -> dict[str, float]:
        """Predicts and scores the validation frames."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        self._predict(self.runner.model.val_step, "val")
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics


@LOOPS.register_module()
class Sa2VATestLoop(_PredictLoop, TestLoop):
    """Test: metrics, maps, masks and pictures in the run's folder.

    Args:
        out_dir: folder of the results; default ``work_dir/<timestamp>``.
    """

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Any, out_dir: str | None = None
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.out_dir = out_dir or runner.log_dir

    def run(self) -> dict[str, float]:
        """Predicts, scores and writes the test frames."""
        model = bare_model(self.runner.model)
        report = self.runner.load_report
        for metric in self.evaluator.metrics:
            if isinstance(metric, VesselMetric):
                metric.out_dir = self.out_dir
                metric.set_provenance(
                    {
                        "answer_mode": model.answer_mode,
                        "checkpoint": report.as_dict() if report else None,
                        "config": self.runner.cfg.filename,
                        "split": split_hash(self.dataloader.dataset),
                    }
                )
        if is_main_process():
            # With --cfg-options the config file alone does not say what ran.
            text = self.runner.cfg.pretty_text.encode()
            write_atomic(Path(self.out_dir, "config.py"), lambda file: file.write(text))
        self.runner.call_hook("before_test")
        self.runner.call_hook("before_test_epoch")
        self.runner.model.eval()
        self._predict(self.runner.model.test_step, "test")
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook("after_test_epoch", metrics=metrics)
        self.runner.call_hook("after_test")
        return metrics
