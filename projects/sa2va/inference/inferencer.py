"""Trained weights and images in, probability maps and masks out."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from mmengine.logging import print_log

from ..checkpoints import sha256_of
from ..engine.evaluation_setup import choose_threshold, describe_source
from ..errors import ConfigError, listing
from ..evaluation.postprocess import PostProcess
from ..models.outputs import DEFAULT_PRESENCE_THRESHOLD
from ..placement import Placement, Precision, choose_placement, parse_precision
from ..processing import Sa2VAProcessor
from .build import build_model, readers
from .inputs import Source, find_images, is_single
from .pipeline import Pipeline, Task, explain_full_card
from .questions import DEFAULT_TEXT, Question, check_own_words, make_questions
from .results import InferenceResult, check_threshold
from .sources import ModelSource, find_model
from .workers import Workers


class Sa2VAInferencer:
    """A model that is loaded once and predicts images in any form.

    Predictions are those of ``tools/test.py`` with the same config, checkpoint and precision. It
    is used by one thread at a time.

    Args:
        config: a config file; the work dir of a training run; a training checkpoint; or the folder
            of a whole Sa2VA (released, or exported by tools/convert.py). See
            :func:`.sources.find_model`.
        checkpoint: trained weights; a run's folder, a checkpoint and a whole Sa2VA need none.
        device: 'auto', 'cpu', 'cuda' or 'cuda:1'.
        precision: 'config' (as the config says), 'bf16', 'fp16', 'fp32', 'int8', 'nf4', or by part
            (``dict(llm='nf4', vit='bf16', sam2='fp32')``); see docs/precision.md.
        placement: 'auto', 'single', 'sharded', 'data-parallel' or 'cpu'; see docs/placement.md.
        gpus: cards to use; None: one if the model fits, or else all.
        memory_gib: what may be taken of each card; None: what is free.
        threshold: a number, 'config', or a threshold file; None: the file that
            tools/tune_threshold.py wrote beside the checkpoint, or else the config's.
        batch_size: images of a forward pass; None: the config's ``test_dataloader.batch_size``.
        merge_lora: put LoRA into the weights: less memory and time, sums rounded to the weights'
            dtype; None: the config's ``test_cfg.merge_lora``.
        cfg_options: overrides of the config, ``{'model.answer_mode': 'generate'}``.

    Attributes:
        cfg: the resolved config.
        placement, precision: what was chosen.
        postprocess: what is done to masks after the threshold.
        intensity: how values deeper than 8 bits become 8 bits: as in the config's test set.

    Raises:
        UserError: whatever is wrong with config, checkpoint or machine, before weights are loaded
            where that can be known.
    """

    def __init__(
        self,
        config: str | os.PathLike,
        checkpoint: str | os.PathLike | None = None,
        *,
        device: str = "auto",
        precision: str | Mapping[str, str] = "config",
        placement: str = "auto",
        gpus: int | None = None,
        memory_gib: float | None = None,
        threshold: float | str | None = None,
        batch_size: int | None = None,
        merge_lora: bool | None = None,
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        source = find_model(config, checkpoint, cfg_options)
        self.cfg = cfg = source.cfg
        self._source = source
        self._set_threshold(threshold, cfg_options)
        self.precision = parse_precision(precision)
        self.precision.before_build(cfg)
        # Into the config, where the plan of the memory finds them, and every process that predicts.
        cfg.test_dataloader = cfg.get("test_dataloader") or {}
        loader = cfg.test_dataloader
        own = loader.get("batch_size", 1) if batch_size is None else batch_size
        self.batch_size = loader.batch_size = _at_least_one(own)
        own = cfg.test_cfg.get("merge_lora", False) if merge_lora is None else merge_lora
        cfg.test_cfg.merge_lora = bool(own)
        self.intensity = loader.get("dataset", {}).get("intensity", "own_range")
        self.placement: Placement = choose_placement(
            cfg,
            placement,
            device=device,
            gpus=gpus,
            memory_gib=memory_gib,
            precision=self.precision,
        )
        self._pipeline = self._start()

    def __call__(
        self,
        images: Any,
        text: str | Sequence[str] = DEFAULT_TEXT,
        *,
        threshold: float | None = None,
    ) -> list[InferenceResult]:
        """Predicts all images.

        Args:
            images: a path, folder or glob; an array (any bit depth) or Pillow image; or a list of
                these, whose sizes may differ. See :func:`.inputs.find_images`.
            text: a phrase ('blood vessel'), a whole question (ends with . ? or !), or several:
                each phrase gets a map, and the image encoders run once for all of them.
            threshold: in place of the inferencer's.

        Returns:
            One result an image, in order. An image that cannot be read has a result too, whose
            ``error`` says why; such images are listed in a warning at the end.

        Raises:
            UserError: a path that is not there, a text that cannot be asked.
        """
        return list(self.stream(images, text, threshold=threshold))

    def stream(
        self,
        images: Any,
        text: str | Sequence[str] = DEFAULT_TEXT,
        *,
        threshold: float | None = None,
    ) -> Iterator[InferenceResult]:
        """As :meth:`__call__`, one result at a time: for thousands of images, with bounded memory.

        ``images`` may be a generator, which is consumed as results are taken.
        """
        questions = self.questions(text)
        sources = find_images(images, self.intensity)
        return self._report_failures(self.predict_sources(sources, questions, threshold))

    def questions(self, text: str | Sequence[str]) -> list[Question]:
        """What ``text`` asks of each image.

        Raises:
            DataError: it cannot be asked, or not of this model.
        """
        questions = make_questions(text, self.processor)
        mode = self.cfg.model.get("answer_mode", "forced")
        check_own_words(questions, mode, self.processor)
        return questions

    def predict_sources(
        self,
        sources: Iterable[Source],
        questions: Sequence[Question],
        threshold: float | None = None,
    ) -> Iterator[InferenceResult]:
        """As :meth:`stream`, of what has been looked up already."""
        threshold = self.threshold if threshold is None else threshold
        check_threshold(threshold)
        self.postprocess.check(threshold)
        task = Task(tuple(questions), float(threshold), self.postprocess)
        return self._pipeline.run(sources, task)

    @property
    def threshold(self) -> float:
        """A pixel belongs to a mask where probability >= threshold."""
        return float(self.cfg.test_evaluator.threshold)

    @property
    def threshold_text(self) -> str:
        """The threshold and where it comes from."""
        text = describe_source(self.threshold, self.cfg.test_cfg.threshold_source)
        done = self.postprocess.describe()
        return f"{text}; {done}" if done else text

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the predictions, as plain data."""
        path = self._source.path
        model = self.cfg.model
        mode = model.get("answer_mode", "none")
        presence = model.get("presence_threshold", DEFAULT_PRESENCE_THRESHOLD)
        return {
            "model": self._source.text,
            "checkpoint_sha256": None if path is None else sha256_of(path),
            "model_config_sha256": self._source.model_sha256(),
            "answer_mode": mode,
            "presence_threshold": presence if mode == "choice" else None,
            "precision": self.precision.as_dict(),
            "merge_lora": self.cfg.test_cfg.merge_lora,
            "threshold": self.threshold,
            "threshold_source": self.cfg.test_cfg.threshold_source.to_dict(),
            "postprocess": self.postprocess.as_dict(),
            "intensity": self.intensity,
        }

    def describe(self) -> str:
        """Model, weights, where and how it runs, a line each."""
        return "\n".join(
            [
                f"Model: {self._source.text}",
                f"Runs on: {self.placement.describe()}; batches of {self.batch_size}",
                f"Precision: {self.precision.describe()}",
                self.threshold_text,
            ]
        )

    def close(self) -> None:
        """Ends the processes of data-parallel prediction; else does nothing."""
        if isinstance(self._pipeline, Workers):
            self._pipeline.close()

    def __enter__(self) -> Sa2VAInferencer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @functools.cached_property
    def processor(self) -> Sa2VAProcessor:
        """How images and texts become tensors."""
        if isinstance(self._pipeline, Pipeline):
            return self._pipeline.model.processor
        return Sa2VAProcessor(**self.cfg.model.processor)

    def _start(self) -> Pipeline | Workers:
        if self.placement.kind != "data-parallel":
            return start_pipeline(self._source, self.placement, self.precision)
        # The checkpoint is read by each process itself, and not sent through a pipe.
        source = replace(self._source, checkpoint=None)
        again = functools.partial(_start_one, source, self.placement, self.precision)
        return Workers(again, self.placement.gpus or 1, self.batch_size)

    def _set_threshold(
        self, threshold: float | str | None, cfg_options: Mapping[str, Any] | None
    ) -> None:
        cfg = self.cfg
        if not cfg.get("test_evaluator"):
            raise ConfigError(
                found=f"no test_evaluator in the {self._source.text}",
                expected="the threshold that maps are cut at",
                fix="add configs/_base_/runtime.py to _base_",
            )
        cfg.test_cfg = cfg.get("test_cfg") or {"type": "Sa2VATestLoop"}
        text = None if threshold is None else str(threshold)
        choose_threshold(cfg, text, self._source.path, cfg_options, self._source.weights())
        self.postprocess = PostProcess(**(cfg.test_evaluator.get("postprocess") or {}))

    @staticmethod
    def _report_failures(results: Iterable[InferenceResult]) -> Iterator[InferenceResult]:
        failed, unmapped, count = [], {}, 0
        for result in results:
            count += 1
            if result.error is not None:
                failed.append(result)
            elif result.unmapped:
                unmapped[result.name] = unmapped_text(result)
            yield result
        if failed:
            print_log(failures_text(failed, count), logger="current", level=logging.WARNING)
        if unmapped:
            print_log(unmapped_notes(unmapped), logger="current", level=logging.WARNING)


def failures_text(failed: Sequence[InferenceResult], count: int) -> str:
    """Which images have no prediction, and why."""
    shown = reasons({one.name: one.error.found for one in failed if one.error})
    return f"{len(failed)} of {count} images have no prediction:{shown}"


def unmapped_text(result: InferenceResult) -> str:
    """What was said about phrases whose [SEG] cannot be told apart."""
    answers = dict.fromkeys(
        answer
        for answer, phrase in zip(result.answers, result.phrases, strict=True)
        if phrase in result.unmapped
    )
    return f"{listing(result.unmapped)}: {listing(map(repr, answers))}"


def unmapped_notes(unmapped: Mapping[str, str]) -> str:
    """Images with such answers, and what to do."""
    return (
        f"{len(unmapped)} images with an answer that cannot be mapped to the phrases of its "
        f"question, whose masks are left empty:{reasons(unmapped)}\n"
        "Ask each phrase by itself (several texts), or set model.answer_mode=choice."
    )


def reasons(failed: Mapping[str, str]) -> str:
    """Images and why they failed, a line each; of many the first twenty."""
    lines = [f"\n  {name}: {reason}" for name, reason in failed.items()]
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return "".join(lines[:20]) + more


def start_pipeline(
    source: ModelSource,
    placement: Placement,
    precision: Precision,
    processes: int = 1,
    say: bool = True,
) -> Pipeline:
    """Builds the model in this process, with a report of its weights in the log.

    ``test_cfg.merge_lora`` and ``test_dataloader.batch_size`` of the config must be set.
    """
    with explain_full_card("the weights of the model"):
        model, report = build_model(source, placement, precision)
    if say:
        print_log(report.text(), logger="current")
    return Pipeline(model, source.cfg.test_dataloader.batch_size, readers(processes))


def _start_one(
    source: ModelSource, placement: Placement, precision: Precision, number: int
) -> Pipeline:
    """The pipeline of one process of several."""
    from ..checkpoints import read_checkpoint

    if source.path is not None:
        source = replace(source, checkpoint=read_checkpoint(source.path))
    main = "cpu" if placement.main == "cpu" else f"cuda:{number}"
    own = replace(placement, kind="cpu" if main == "cpu" else "single", devices=(main,))
    count = placement.gpus or 1
    return start_pipeline(source, own, precision, count, number == 0)


def init_model(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str = "auto",
    **settings: Any,
) -> Sa2VAInferencer:
    """The name that mmsegmentation's users know; see :class:`Sa2VAInferencer`."""
    return Sa2VAInferencer(config, checkpoint, device=device, **settings)


def inference_model(
    model: Sa2VAInferencer, images: Any, text: str | Sequence[str] = DEFAULT_TEXT
) -> InferenceResult | list[InferenceResult]:
    """The name that mmsegmentation's users know.

    Returns:
        One result for one image, a list for several (also for a folder or glob).

    Raises:
        UserError: as :meth:`Sa2VAInferencer.__call__`; also where the one image cannot be read.
    """
    results = model(images, text)
    if not is_single(images):
        return results
    if results[0].error is not None:
        raise results[0].error
    return results[0]


def _at_least_one(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(
            found=f"batch_size={batch_size!r}",
            expected="a whole number of at least 1",
            fix="correct --batch-size (in Python: batch_size=...)",
        )
    return batch_size
