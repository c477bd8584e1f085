"""The record of a run over many images, which an interrupted run goes on from.

``predictions.jsonl`` gets a line for each image, after its files are on the disk; what a kill cut
off of the last line is dropped. ``run.json`` says what the lines were made with, and another run
goes on only with the same. ``predictions.csv`` and ``predictions.json`` (COCO RLE) are made of the
lines at the end.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, SetupError, listing
from ..evaluation.writer import encode_mask, strict
from ..files import make_writable, write_atomic
from ..locks import locked
from .inputs import Source
from .outputs import FILES, TABLES, check_outputs, write_files
from .results import InferenceResult

_WRITERS, _AHEAD = 4, 32  # threads, and images that wait for them
RUN, LINES = "run.json", "predictions.jsonl"
# Names of files need not be UTF-8: a byte that is none is written as \\udcXX.
_ERRORS = "backslashreplace"
_COLUMNS = (
    *("image", "phrase", "width", "height", "threshold", "mask_pixels", "mask_share"),
    *("mean_probability", "max_probability", "seg_emitted", "answer", "seconds"),
    *("presence", "unmapped"),
    *("mask", "probability", "probability-npz", "overlay", "error"),
)


class Journal:
    """Files and records of a run, in one folder; it holds no image and no record in memory.

    Args:
        folder: made if absent.
        outputs: of ``outputs.OUTPUTS``.
        settings: what decides the predictions; another run's must be equal to go on.
        skip_existing: go on where an earlier run stopped.
        overwrite: predict everything again over an earlier run's files.

    Attributes:
        folder: of the files.

    Raises:
        ConfigError: the folder holds an earlier run, and neither is asked for; or it was made
            with other settings; or it holds files of something else.
        SetupError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        outputs: Sequence[str],
        settings: Mapping[str, Any],
        *,
        skip_existing: bool = False,
        overwrite: bool = False,
    ) -> None:
        check_outputs(outputs)
        self.outputs = tuple(outputs)
        self.folder = make_writable(folder, "--out")
        self._settings = strict({**settings, "outputs": sorted(outputs)})
        check_free(self.folder, skip_existing=skip_existing, overwrite=overwrite)
        if (self.folder / LINES).exists() and not overwrite:
            self._check_settings()
        else:
            self._write(LINES, [])
        self._write(RUN, [json.dumps(self._settings, indent=1)])
        self._pool = ThreadPoolExecutor(_WRITERS, "write")
        self._pending: deque[Future[dict[str, Any]]] = deque()

    def todo(self, sources: Sequence[Source]) -> list[Source]:
        """Those that an earlier run has not predicted, or whose file or outputs changed since.

        Records of these, and of images that failed, are dropped: they are tried again.
        """
        given = {source.name: source for source in sources}
        kept = {r["image"] for r in self._read() if self._is_done(r, given.get(r["image"]))}
        again = [_line(record) for record in self._read() if record["image"] in kept]
        self._write(LINES, again)
        return [source for source in sources if source.name not in kept]

    def add(self, result: InferenceResult) -> None:
        """Writes the files of one image and then its record, by threads, in the order of calls.

        Raises:
            SetupError: files of an earlier image could not be written.
        """
        self._pending.append(self._pool.submit(self._record, result))
        while len(self._pending) > _AHEAD:
            self._take()

    def finish(self) -> list[Path]:
        """Waits for all files, and makes the tables of all records; returns their paths."""
        try:
            while self._pending:
                self._take()
        finally:
            self._pool.shutdown(cancel_futures=True)
            tables = [
                self._write(TABLES[name], table(self._read()))
                for name, table in (("csv", _table), ("rle", _coco))
                if name in self.outputs
            ]
        return tables

    def _take(self) -> None:
        with _explain_writing(self.folder):
            record = self._pending.popleft().result()
            with open(self.folder / LINES, "ab") as file:
                file.write(_line(record).encode(errors=_ERRORS))

    def _is_done(self, record: Mapping[str, Any], source: Source | None) -> bool:
        files = [name for row in record["rows"] for name in row["files"].values()]
        return (
            record["error"] is None
            and (source is None or record["file"] == identity(source.path))
            and all((self.folder / name).is_file() for name in files)
        )

    def _record(self, result: InferenceResult) -> dict[str, Any]:
        error = None if result.error is None else str(result.error)
        if error is not None and result.path is not None:
            # Results name images, and no folder of the user's.
            error = error.replace(str(result.path), result.name)
        return {
            "image": result.name,
            "file": identity(result.path),
            "error": error,
            "rows": [] if result.error is not None else self._rows(result),
        }

    def _rows(self, result: InferenceResult) -> list[dict[str, Any]]:
        written = write_files(result, self.folder, self.outputs)
        rows = []
        for index, phrase in enumerate(result.phrases):
            mask, probability = result.masks[index], result.probabilities[index]
            files = {
                name: written[name, index].relative_to(self.folder).as_posix()
                for name in self.outputs
                if name in FILES
            }
            rows.append(
                {
                    "phrase": phrase,
                    "size": list(mask.shape),
                    "threshold": result.threshold,
                    "mask_pixels": int(mask.sum()),
                    "mean_probability": float(probability.mean(dtype=np.float64)),
                    "max_probability": float(probability.max(initial=0.0)),
                    "seg_emitted": bool(result.seg_emitted[index]),
                    "answer": result.answers[index],
                    **({} if result.presence is None else {"presence": result.presence[index]}),
                    **({"unmapped": True} if phrase in result.unmapped else {}),
                    "seconds": sum(result.timing.values()),
                    "files": files,
                    **({"rle": encode_mask(mask)} if "rle" in self.outputs else {}),
                }
            )
        return rows

    def _check_settings(self) -> None:
        path = self.folder / RUN
        try:
            earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(
                found=f"{path} cannot be read: {error}",
                expected="what the predictions in this folder were made with",
                fix="--overwrite, or another --out",
            ) from error
        other = sorted(
            key
            for key in {*earlier, *self._settings}
            if earlier.get(key) != self._settings.get(key)
        )
        if other:
            changes = [f"{k} {earlier.get(k)!r} -> {self._settings.get(k)!r}" for k in other]
            raise ConfigError(
                found=f"{self.folder} was predicted with other settings: {listing(changes, 5)}",
                expected="the same settings in one folder: its masks would not belong together",
                fix="give the same settings, --overwrite, or another --out",
            )

    def _read(self) -> Iterator[dict[str, Any]]:
        with open(self.folder / LINES, "rb") as file:
            for line in file:
                # A kill, a full disk or a power cut leaves half a line. It counts as absent: its
                # image is predicted again.
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                yield record

    def _write(self, name: str, parts: Iterable[str]) -> Path:
        path = self.folder / name
        with _explain_writing(self.folder):
            write_atomic(
                path, lambda file: file.writelines(p.encode(errors=_ERRORS) for p in parts)
            )
        return path


def alone(folder: str | Path) -> contextlib.AbstractContextManager[int]:
    """Keeps every other run out of ``folder``.

    Raises:
        ConfigError: another process predicts into it.
        SetupError: the folder cannot be written to.
    """
    in_use = ConfigError(
        found=f"another run predicts into {folder} now",
        expected="one run a folder: two would mix their records",
        fix="wait for it, or give another --out",
    )
    return locked(folder, "--out", in_use)


@contextlib.contextmanager
def _explain_writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            found=f"a file in {folder} cannot be written ({error.strerror})",
            expected="space left, and names that the disk can hold",
            fix="make space or shorten the images' names, then go on with --skip-existing",
        ) from error


def check_free(folder: str | Path, *, skip_existing: bool, overwrite: bool) -> None:
    """Raises ConfigError where files would be lost or mixed, unless that is asked for."""
    if overwrite:
        return
    held = [name for name in dict.fromkeys(FILES.values()) if _holds_files(Path(folder, name))]
    if held and not (Path(folder) / LINES).exists():
        raise ConfigError(
            found=f"{folder} holds {listing(held)}/ of something else (there is no {LINES})",
            expected="an empty or new folder: files of the same names would be lost",
            fix="give another --out",
        )
    if (Path(folder) / LINES).exists() and not skip_existing:
        raise ConfigError(
            found=f"{folder} holds the predictions of an earlier run",
            expected="an empty or new folder, or --skip-existing or --overwrite",
            fix="--skip-existing goes on with it, --overwrite begins anew, --out names another",
        )


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def identity(path: Path | None) -> list[int] | None:
    """Size and time of a file: whether it is still the one that was predicted.

    None where it is gone, or never was a file.
    """
    if path is None or not path.is_file():
        return None
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(strict(record), ensure_ascii=False, allow_nan=False) + "\n"


def _table(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of predictions.csv, a mask or a failure each."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore")
    table.writeheader()
    for record in records:
        if record["error"] is not None:
            table.writerow({"image": record["image"], "error": record["error"]})
        for row in record["rows"]:
            height, width = row["size"]
            share = row["mask_pixels"] / (height * width)
            about = {"image": record["image"], "height": height, "width": width}
            table.writerow({**row, **about, "mask_share": f"{share:.6f}", **row["files"]})
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _coco(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """COCO results: a mask each, ``image_id`` being the image's name."""
    before = "["
    for record in records:
        for row in record["rows"]:
            mask = {
                "image_id": record["image"],
                "category": row["phrase"],
                "segmentation": row["rle"],
                "area": row["mask_pixels"],
                "bbox": coco_mask.toBbox(row["rle"]).tolist(),
                "score": row["max_probability"],
            }
            yield f"{before}\n {json.dumps(mask)}"
            before = ","
    yield "[]\n" if before == "[" else "\n]\n"
