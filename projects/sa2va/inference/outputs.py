"""Files of predictions.

    masks/<name>.png              0 and 255, of the image's own size
    probabilities/<name>.png      round(255 p), or .npz with ``probability``, float16
    overlays/<name>.png           the mask over the image

``<name>`` is the image's own, with its folders; with several questions it ends in ``__<phrase>``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, listing, suggest
from ..evaluation.writer import file_stem, write_mask, write_probability
from ..files import make_writable, write_atomic

if TYPE_CHECKING:
    from .results import InferenceResult

FILES = {
    "mask": "masks",
    "probability": "probabilities",
    "probability-npz": "probabilities",
    "overlay": "overlays",
}
TABLES = {"csv": "predictions.csv", "rle": "predictions.json"}
OUTPUTS = (*FILES, *TABLES)


def check_outputs(outputs: Sequence[str], *, files_only: bool = False) -> None:
    """Raises ConfigError unless all of ``outputs`` are known."""
    known = tuple(FILES) if files_only else OUTPUTS
    wrong = [name for name in outputs if name not in known]
    if wrong or isinstance(outputs, str) or not outputs:
        name = outputs if isinstance(outputs, str) else listing(wrong)
        raise ConfigError(
            found=f"outputs {name!r}" + suggest(wrong[0] if wrong else "", known),
            expected=f"a list of {', '.join(known)}",
            fix="correct --outputs (in Python: outputs=[...])",
        )


def is_output(path: Path | None, folder: str | Path) -> bool:
    """Whether a file lies where predictions into ``folder`` are written."""
    if path is None:
        return False
    inside = Path(os.path.abspath(path))
    return any(
        inside.is_relative_to(os.path.abspath(Path(folder, name))) for name in FILES.values()
    )


def write_files(
    result: InferenceResult, folder: Path, outputs: Sequence[str]
) -> dict[tuple[str, int], Path]:
    """Writes the files of one image, each whole or not at all.

    Args:
        result: with a prediction.
        folder: made if absent.
        outputs: of :data:`FILES`; tables are left out.

    Returns:
        Files by output and number of the phrase.

    Raises:
        SetupError: a folder cannot be written to.
    """
    written: dict[tuple[str, int], Path] = {}
    several = len(result.phrases) > 1
    for index, phrase in enumerate(result.phrases):
        stem = result.stem.with_name(file_stem(result.stem.name, phrase if several else None))
        for name in outputs:
            if name not in FILES:
                continue
            path = Path(folder, FILES[name], stem)
            if not path.parent.is_dir():
                make_writable(path.parent, "--out (in Python: the folder of save)")
            written[name, index] = _write(result, index, name, path)
    return written


def _write(result: InferenceResult, index: int, name: str, path: Path) -> Path:
    if name == "mask":
        return write_mask(path, result.masks[index])
    if name == "overlay":
        path = path.with_name(f"{path.name}.png")
        picture = io.BytesIO()
        result.overlay(index).save(picture, format="PNG", compress_level=1)
        write_atomic(path, lambda file: file.write(picture.getbuffer()))
        return path
    kind = "npz" if name == "probability-npz" else "png"
    return write_probability(path, result.probabilities[index], kind)
