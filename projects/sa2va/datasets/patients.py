"""Patients: the unit of splits and of confidence intervals, named by pseudonyms in every output.

``patient=dict(type='regex', pattern=r'^(P\\d+)_')`` takes the id from the file name;
``match_on='path'`` from the path below the image folder (for a folder a patient).
``patient=dict(type='mapping', file='patients.csv')`` takes it from a table with the columns
``image`` and ``patient`` (``image_column``, ``patient_column`` name others), or from a JSON object
``{image: patient}``; an image is its path below the image folder, its file name or its stem.

A pseudonym without a key can be undone by whoever guesses the original id ("P017") and hashes it.
``key_env='NAME'`` names an environment variable that holds a secret key, which closes that gap;
the key itself does not belong in a config, because configs are stored with the results.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, DataError, listing, suggest

_KEYS = {
    "regex": ("pattern", "match_on", "key_env"),
    "mapping": ("file", "image_column", "patient_column", "key_env"),
}


def _digest(text: str, key: str) -> str:
    data = text.encode("utf-8")
    if key:
        return hmac.new(key.encode("utf-8"), data, hashlib.sha256).hexdigest()
    return hashlib.sha256(data).hexdigest()


def pseudonym(raw: str, key: str = "") -> str:
    """Returns ``patient_`` and 8 hexadecimal digits: the same for the same id (and key) always."""
    return f"patient_{_digest(raw, key)[:8]}"


class PatientIds:
    """Finds the patient of each image, by config.

    Args:
        config: see the head of this module.
        data_root: folder that a relative mapping ``file`` starts from.

    Raises:
        ConfigError: unknown type or key, a pattern that is no regular expression or has no group,
            an unset environment variable.
        DataError: a mapping file that is missing, unreadable or names two patients for one image.
    """

    def __init__(self, config: Mapping[str, Any], data_root: str | Path = "") -> None:
        options = dict(config)
        self.kind = str(options.pop("type", ""))
        if self.kind not in _KEYS:
            raise ConfigError(
                f"patient type {self.kind!r}{suggest(self.kind, _KEYS)}",
                "type='regex' or type='mapping'",
                "set patient=dict(type='regex', pattern=...) or dict(type='mapping', file=...)",
            )
        for name in options:
            if name not in _KEYS[self.kind]:
                raise ConfigError(
                    f"unknown key {name!r} in patient{suggest(name, _KEYS[self.kind])}",
                    f"type and {', '.join(_KEYS[self.kind])}",
                    "correct or remove the key",
                )
        self.key = _secret(options.get("key_env"))
        if self.kind == "regex":
            self.pattern = _compiled(options.get("pattern"))
            self.match_on = options.get("match_on", "name")
            if self.match_on not in ("name", "path"):
                raise ConfigError(
                    f"patient match_on={self.match_on!r}",
                    "match_on='name' or match_on='path'",
                    "correct `patient.match_on`",
                )
        else:
            self.file = Path(data_root) / _required(options.get("file"), "file")
            columns = options.get("image_column", "image"), options.get("patient_column", "patient")
            self.table = _read_table(self.file, *columns)

    def raw_ids(self, names: Sequence[str]) -> list[str]:
        """Returns the original patient id of each image name (a path below the image folder).

        Raises:
            DataError: images without a patient, some of them listed.
        """
        ids = [self.find(name) for name in names]
        missing = [name for name, raw in zip(names, ids, strict=True) if not raw]
        if not missing:
            return [str(raw) for raw in ids]
        if self.kind == "regex":
            found = f"does not match the patient pattern {self.pattern.pattern!r}"
            fix = "correct `patient.pattern` (its first group is the id), or rename the files"
        else:
            found = f"is not listed in {self.file}"
            fix = "add the images to the file, by file name or by path below the image folder"
        raise DataError(
            f"{len(missing)} of {len(names)} image names without a patient, "
            f"the name {found}: {listing(missing)}",
            "one patient for every image",
            fix,
        )

    def find(self, name: str) -> str | None:
        """Returns the original patient id of an image name, or None."""
        path = PurePosixPath(name)
        if self.kind == "regex":
            match = self.pattern.search(name if self.match_on == "path" else path.name)
            return match.group(1) if match else None
        return next((self.table[k] for k in (name, path.name, path.stem) if k in self.table), None)

    def pseudonyms(self, raw_ids: Sequence[str]) -> list[str]:
        """Returns the pseudonym of each id.

        Raises:
            DataError: two patients share a pseudonym (32 bits; likely from 10,000 patients on).
        """
        owners: dict[str, str] = {}
        for raw in raw_ids:
            if owners.setdefault(pseudonym(raw, self.key), raw) != raw:
                raise DataError(
                    f"two patients with the same pseudonym {pseudonym(raw, self.key)}",
                    "a pseudonym for each patient",
                    "set another key through `patient.key_env`",
                )
        return [pseudonym(raw, self.key) for raw in raw_ids]

    def frame_names(self, names: Sequence[str], raw_ids: Sequence[str]) -> list[str]:
        """Returns output names ``<pseudonym>_<6 hex of the stem's hash>``, unique.

        Where stems repeat the path below the image folder is hashed instead, and a name that still
        collides gets the whole hash of it.
        """
        stems = Counter((raw, PurePosixPath(n).stem) for n, raw in zip(names, raw_ids, strict=True))
        heads = self.pseudonyms(raw_ids)

        def sources():
            for name, raw in zip(names, raw_ids, strict=True):
                stem = PurePosixPath(name).stem
                yield stem if stems[raw, stem] == 1 else name

        short = [f"{h}_{_digest(s, self.key)[:6]}" for h, s in zip(heads, sources(), strict=True)]
        seen = Counter(short)
        return numbered(
            [
                out if seen[out] == 1 else f"{head}_{_digest(name, self.key)[:16]}"
                for out, head, name in zip(short, heads, names, strict=True)
            ]
        )


def stem_names(names: Sequence[str]) -> list[str]:
    """Returns output names made of the stems; where stems repeat, of more of the path, unique."""
    levels = (
        lambda path: path.stem,
        lambda path: "_".join(path.with_suffix("").parts),
        lambda path: "_".join((*path.with_suffix("").parts, path.suffix.lstrip("."))),
    )
    paths = [PurePosixPath(name) for name in names]
    out = [levels[0](path) for path in paths]
    for level in levels[1:]:
        count = Counter(out)
        out = [level(p) if count[o] > 1 else o for p, o in zip(paths, out, strict=True)]
    return numbered(out)


def numbered(names: Sequence[str]) -> list[str]:
    """Appends _2, _3, ... to names that are taken already, in order."""
    taken, out, next_number = set(names), [], defaultdict(lambda: 2)
    used: set[str] = set()
    for name in names:
        unique = name
        while unique in used or (unique != name and unique in taken):
            unique = f"{name}_{next_number[name]}"
            next_number[name] += 1
        used.add(unique)
        out.append(unique)
    return out


def _required(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"patient.{name} is {value!r}", f"a text for `{name}`", f"set `patient.{name}`"
        )
    return value


def _secret(variable: str | None) -> str:
    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise ConfigError(
            f"patient.key_env names the environment variable {variable}, which is not set",
            "a variable that holds the secret key of the pseudonyms",
            f"export {variable}=..., the same for every run whose results are to be compared",
        )
    return os.environ[variable]


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        compiled = re.compile(_required(pattern, "pattern"))
    except re.error as error:
        raise ConfigError(
            f"patient.pattern {pattern!r} is not a regular expression: {error}",
            r"a regular expression such as r'^(P\d+)_'",
            "correct `patient.pattern`",
        ) from error
    if compiled.groups < 1:
        raise ConfigError(
            f"patient.pattern {pattern!r} has no group",
            r"a pattern whose first group is the patient id, such as r'^(P\d+)_'",
            "put parentheses around the part that is the id",
        )
    return compiled


def _read_table(path: Path, image_column: str, patient_column: str) -> dict[str, str]:
    expected = f"a CSV with the columns {image_column},{patient_column}, or a JSON object"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            loaded = json.loads(text)
            rows = list(loaded.items()) if isinstance(loaded, dict) else None
        else:
            reader = csv.DictReader(text.splitlines())
            wanted = {image_column, patient_column} <= set(reader.fieldnames or ())
            rows = [(r[image_column], r[patient_column]) for r in reader] if wanted else None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"patient mapping {path} cannot be read: {error}", expected, "correct `patient.file`"
        ) from error
    if rows is None:
        raise DataError(
            f"patient mapping {path} is not of that form",
            expected,
            "rename the columns, or name them by `image_column` and `patient_column`",
        )
    table: dict[str, str] = {}
    for image, patient in rows:
        if table.setdefault(str(image), str(patient)) != str(patient):
            raise DataError(
                f"{path} gives {image} to two patients",
                "one patient for every image",
                f"correct the rows of {image}",
            )
    return table
