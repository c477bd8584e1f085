"""Train, validation and test loops.

The test and validation loops hand the model ``batch['inputs']`` and nothing else; truth goes to
the evaluator only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator

from projects.sa2va.checkpoints import software
from projects.sa2va.datasets.integrity import split_hash
from projects.sa2va.evaluation import VesselMetric
from projects.sa2va.files import write_atomic
from projects.sa2va.models import SegmentationModel, is_sharded
from projects.sa2va.placement import (
    Placement,
    choose_placement,
    parse_precision,
    prepare_for_prediction,
)

from .bare import bare_model
from .divergence import check_losses, gradients_watched, name_step
from .ema import averaged_weights
from .evaluation_setup import describe_source
from .stopping import VALIDATION_DUE, StopOnSignal, ValidationStopped


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
        hub = self.runner.message_hub
        if hub.runtime_info.get(VALIDATION_DUE) == self._iter:
            hub.pop_info(VALIDATION_DUE)
            self._decide_current_val_interval()
            self._validate()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if not self.stop_training and self.time_to_validate(self._iter):
                self._validate()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def time_to_validate(self, done: int) -> bool:
        """Whether a validation follows the iteration ``done`` (counted from 1)."""
        if self.runner.val_loop is None or done < self.val_begin:
            return False
        return done % self.val_interval == 0 or done == self._max_iters

    def _validate(self) -> None:
        try:
            self.runner.val_loop.run()
        except ValidationStopped:
            for hook in _stop_hooks(self.runner):
                hook.stop(self.runner, self._iter)

    def run_iter(self, data_batch: dict[str, Any]) -> None:
        """Runs one iteration.

        Args:
            data_batch: a training batch of the collate function.
        """
        seed = self.runner.seed or 0
        torch.manual_seed(seed + 1_000_003 * self._iter + 7_919 * get_rank())
        runner, where = self.runner, {"batch_idx": self._iter, "data_batch": data_batch}
        runner.call_hook("before_train_iter", **where)
        step = name_step(self._iter, data_batch["meta"])
        with gradients_watched(bare_model(runner.model), step):
            losses = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        # Before any hook averages or saves weights that are lost.
        check_losses(losses, step)
        runner.call_hook("after_train_iter", **where, outputs=losses)
        self._iter += 1


class _PredictLoop:
    """Shared by validation and test."""

    def _predict(self, step: Any, stage: str) -> None:
        rounds = self._rounds()
        for index, batch in enumerate(self.dataloader):
            self._before_round()
            self.runner.call_hook(f"before_{stage}_iter", batch_idx=index, data_batch=batch)
            with torch.no_grad():
                outputs = step({"inputs": batch["inputs"]})
            truth = {"truth": batch["truth"], "meta": batch["meta"]}
            self.evaluator.process(data_samples=outputs, data_batch=truth)
            self.runner.call_hook(
                f"after_{stage}_iter", batch_idx=index, data_batch=batch, outputs=outputs
            )
        for _ in range(rounds - len(self.dataloader)):
            self._before_round()
            self._keep_in_step(step)

    def _before_round(self) -> None:
        """Called before each batch, as often in every process."""

    def _rounds(self) -> int:
        """Most batches of any process; asked before the first of them.

        Under ZeRO-3 a process that asked afterwards would meet another's forward pass.
        """
        most = torch.tensor(len(self.dataloader))
        if get_world_size() > 1:
            all_reduce(most, "max")
        return int(most)

    def _keep_in_step(self, step: Any) -> None:
        """Under ZeRO-3 every forward pass gathers weights from all processes.

        A process with fewer frames would leave the others waiting, so it repeats its data set's
        first frame, whose prediction is dropped.
        """
        if is_sharded(bare_model(self.runner.model)):
            batch = self.dataloader.collate_fn([self.dataloader.dataset[0]])
            with torch.no_grad():
                step({"inputs": batch["inputs"]})


@LOOPS.register_module()
class Sa2VAValLoop(_PredictLoop, ValLoop):
    """Validation during training, of the averaged weights where there are any; no files."""

    def run(self) -> dict[str, float]:
        """Predicts and scores the validation frames."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        with averaged_weights(self.runner):
            self._predict(self.runner.model.val_step, "val")
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _before_round(self) -> None:
        for hook in _stop_hooks(self.runner):
            hook.check_validation()


def _stop_hooks(runner: Any) -> list[StopOnSignal]:
    return [hook for hook in runner.hooks if isinstance(hook, StopOnSignal)]


@LOOPS.register_module()
class Sa2VATestLoop(_PredictLoop, TestLoop):
    """Test: metrics, maps, masks and pictures in the run's folder.

    Args:
        out_dir: folder of the results; default ``work_dir/<timestamp>``.
        merge_lora: put LoRA and token rows into the weights first: less memory and time, and
            sums that are rounded to the dtype of the weights.
        placement: where the model runs: a kind of ``placement.KINDS``, or a dict of its
            ``Placement``; None: one card, or the CPU where there is none.
        precision: of each part (``placement.parse_precision``); None: as the config says.
        split_name: which frames are scored; what a threshold is tuned on is never called 'test'.
        test_split: hash of the config's test split where other frames are scored.
        threshold_source: where the evaluator's threshold comes from; tools/test.py sets these
            three (:mod:`.evaluation_setup`).
        weights: ``averaged`` or ``raw`` ones of the checkpoint; None: averaged where it has them.
    """

    CONFIG_SCHEMAS: ClassVar = {"placement": Placement, "precision": None}

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Any,
        out_dir: str | None = None,
        merge_lora: bool = False,
        placement: str | Mapping[str, Any] | None = None,
        precision: str | Mapping[str, str] | None = None,
        split_name: str = "test",
        test_split: str | None = None,
        threshold_source: Mapping[str, Any] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.out_dir = out_dir or runner.log_dir
        self.merge_lora = merge_lora
        self.placement = Placement.from_config(placement)
        self.precision = parse_precision(precision)
        self._is_prepared = False
        self.split = {"split_name": split_name, "test_split": test_split}
        self.threshold_source = dict(threshold_source or {"kind": "config"})
        self.weights = weights

    def run(self) -> dict[str, float]:
        """Predicts, scores and writes the test frames."""
        model = bare_model(self.runner.model)
        report = self.runner.load_report
        if self.runner.optim_wrapper is None:  # nothing of this process goes on training
            self._prepare(model)
        for metric in self.evaluator.metrics:
            if isinstance(metric, VesselMetric):
                metric.out_dir = self.out_dir
                metric.set_grid(model.grid_size)
                metric.set_provenance(
                    {
                        **model.answering(),
                        "placement": self.placement.as_dict(),
                        "precision": self.precision.as_dict(),
                        "checkpoint": report.checkpoint(),
                        "weights": report.as_dict(),
                        "config": self.runner.cfg.filename,
                        "split": split_hash(self.dataloader.dataset),
                        **self.split,
                        "threshold_source": self.threshold_source,
                        "software": software(),
                    }
                )
                said = describe_source(metric.threshold, self.threshold_source)
                self.runner.logger.info(said)
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

    def _prepare(self, model: SegmentationModel) -> None:
        """Puts the loaded model where it runs, once."""
        if self._is_prepared:
            return
        if not self.placement.devices:  # tools/test.py has decided before it loaded anything
            asked = self.placement
            self.placement = choose_placement(
                self.runner.cfg,
                asked.kind,
                gpus=asked.gpus,
                memory_gib=asked.memory_gib,
                precision=self.precision,
            )
        self.runner.logger.info(f"Placement: {self.placement.describe()}")
        self.runner.logger.info(f"Precision: {self.precision.describe()}")
        prepare_for_prediction(
            model,
            merge_lora=self.merge_lora,
            precision=self.precision,
            placement=self.placement,
        )
        self._is_prepared = True
        if self.merge_lora or self.precision.merges_lora:
            self.runner.load_report.notes.append(
                "LoRA and token rows merged into the weights before the test"
            )
