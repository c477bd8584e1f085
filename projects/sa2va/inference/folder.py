"""Many images to files: with progress, a record of every image, and resuming."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .inferencer import Sa2VAInferencer, reasons, unmapped_notes, unmapped_text
from .inputs import GLOB, list_files
from .journal import Journal, alone
from .outputs import is_output
from .questions import DEFAULT_TEXT


@dataclass
class Done:
    """What became of a run.

    Attributes:
        folder: of the files.
        predicted, skipped: images of this run, and of an earlier one.
        failed: images without a prediction, with the reason.
        unmapped: images whose answer about several phrases cannot be mapped to them, with it.
        seconds: from the first image to the last file.
        interrupted: whether Ctrl-C or SIGTERM ended it.
        tables: files made at the end.
    """

    folder: Path
    predicted: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unmapped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    tables: list[Path] = field(default_factory=list)

    def text(self) -> str:
        """A few lines for the end of a run."""
        rate = self.predicted / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.predicted} images predicted in {self.seconds:.1f} s ({rate:.1f} images/s)"
            + (f", {self.skipped} of an earlier run kept" if self.skipped else "")
            + f": {self.folder}"
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} could not be predicted:{reasons(self.failed)}")
        if self.unmapped:
            lines.append(unmapped_notes(self.unmapped))
        if self.interrupted:
            lines.append("Interrupted. The same command with --skip-existing goes on from here.")
        return "\n".join(lines)


def predict_folder(
    inferencer: Sa2VAInferencer,
    images: Any,
    text: str | Sequence[str] = DEFAULT_TEXT,
    out: str | Path = "predictions",
    *,
    outputs: Sequence[str] = ("mask", "overlay", "csv"),
    skip_existing: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Done:
    """Predicts images to files.

    Args:
        inferencer: the model.
        images: as :meth:`Sa2VAInferencer.__call__`; all paths are looked up first. What lies where
            ``out`` gets its masks is not among them.
        text: what is asked.
        out: folder of the files (:mod:`.outputs`, :mod:`.journal`).
        outputs: of ``outputs.OUTPUTS``.
        skip_existing: go on where an earlier run stopped; its files stay as they are.
        overwrite: predict everything again.
        progress: draw a bar.

    Returns:
        What was done. Ctrl-C ends it early; what is done by then stays done.

    Raises:
        UserError: as :meth:`Sa2VAInferencer.__call__`, :func:`.inputs.list_files` and
            :class:`.journal.Journal`, before the first image.
    """
    # A folder of frames that holds its own predictions: these are no frames.
    found = list_files(images, inferencer.intensity)
    sources = [source for source in found if not is_output(source.path, out)]
    asked = inferencer.questions(text)
    settings = {**inferencer.settings, "questions": [question.text for question in asked]}
    with alone(out):
        journal = Journal(out, outputs, settings, skip_existing=skip_existing, overwrite=overwrite)
        todo = journal.todo(sources)
        done = Done(journal.folder, skipped=len(sources) - len(todo))
        start = time.perf_counter()
        bar = tqdm(total=len(todo), unit="image", disable=not progress or None, dynamic_ncols=True)
        try:
            for result in inferencer.predict_sources(todo, asked):
                journal.add(result)
                if result.error is None:
                    done.predicted += 1
                    if result.unmapped:
                        done.unmapped[result.name] = unmapped_text(result)
                else:
                    done.failed[result.name] = result.error.found
                bar.set_postfix_str(_memory(len(done.failed)), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            done.interrupted = True
        finally:
            bar.close()
            done.tables = journal.finish()
    done.seconds = time.perf_counter() - start
    return done


def default_out(images: str) -> Path:
    """Folder of predictions where none is named: ``predictions/<name of what is predicted>``."""
    plain = list(itertools.takewhile(lambda part: not GLOB.search(part), Path(images).parts))
    name = Path(*plain).name
    return Path("predictions", name if name.strip(".") else "images")


def _memory(failed: int) -> str:
    said = [f"{failed} failed"] if failed else []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        said.append(f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB")
    return ", ".join(said)
