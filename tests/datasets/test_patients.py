from __future__ import annotations

import hashlib
import hmac
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.sa2va.datasets.patients import PatientIds, numbered, pseudonym, stem_names
from projects.sa2va.errors import ConfigError, DataError

REGEX = {"type": "regex", "pattern": r"^(P\d+)_"}


def test_pseudonym_is_stable_and_keyed():
    assert pseudonym("P01") == "patient_" + hashlib.sha256(b"P01").hexdigest()[:8]
    expected = hmac.new(b"secret", b"P01", hashlib.sha256).hexdigest()[:8]
    assert pseudonym("P01", "secret") == f"patient_{expected}" != pseudonym("P01")
    assert pseudonym("P01") != pseudonym("P02")


def test_regex_on_name_and_on_path():
    assert PatientIds(REGEX).raw_ids(["P01_a.png", "sub/P02_b.png"]) == ["P01", "P02"]
    by_folder = PatientIds({"type": "regex", "pattern": r"^(\w+)/", "match_on": "path"})
    assert by_folder.raw_ids(["anna/1.png", "bert/1.png"]) == ["anna", "bert"]


def test_names_that_do_not_match_are_listed():
    names = ["P01_a.png", *(f"x{i}.png" for i in range(12))]
    with pytest.raises(DataError) as caught:
        PatientIds(REGEX).raw_ids(names)
    message = str(caught.value)
    assert "12 of 13 image names" in message and "x0.png" in message and "and 2 more" in message
    assert "P01_a.png" not in message and "patient.pattern" in message
    with pytest.raises(DataError, match="1 of 1"):  # a group that takes no part in the match
        PatientIds({"type": "regex", "pattern": r"^(P\d+)?"}).raw_ids(["a.png"])


def test_mapping_by_csv_and_json(tmp_path):
    (tmp_path / "p.csv").write_text("\ufeffimage,patient\nsub/a.png,X\nb,Y\nc.png,Z\n", "utf-8")
    ids = PatientIds({"type": "mapping", "file": "p.csv"}, tmp_path)
    assert ids.raw_ids(["sub/a.png", "b.tif", "deep/c.png"]) == ["X", "Y", "Z"]
    with pytest.raises(DataError, match=r"(?s)d\.png.*add the images to the file"):
        ids.raw_ids(["d.png"])
    (tmp_path / "p.json").write_text(json.dumps({"a.png": 7}))
    assert PatientIds({"type": "mapping", "file": "p.json"}, tmp_path).raw_ids(["a.png"]) == ["7"]
    (tmp_path / "q.csv").write_text("frame;id\na.png;X\n")
    with pytest.raises(DataError, match=r"(?s)q\.csv is not of that form.*`image_column`"):
        PatientIds({"type": "mapping", "file": "q.csv"}, tmp_path)
    (tmp_path / "two.csv").write_text("image,patient\na,X\na,Y\n")
    with pytest.raises(DataError, match="gives a to two patients"):
        PatientIds({"type": "mapping", "file": "two.csv"}, tmp_path)
    with pytest.raises(DataError, match=r"gone\.csv cannot be read"):
        PatientIds({"type": "mapping", "file": "gone.csv"}, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "regexp"}, "did you mean 'regex'"),
        ({"type": "regex", "patern": "x"}, "did you mean 'pattern'"),
        ({"type": "regex", "pattern": "("}, "is not a regular expression"),
        ({"type": "regex", "pattern": "P1"}, "has no group"),
        ({"type": "regex"}, "patient.pattern is None"),
        ({"type": "mapping"}, "patient.file is None"),
        (REGEX | {"match_on": "stem"}, "match_on='stem'"),
        (REGEX | {"key_env": "SA2VA_TEST_UNSET"}, "SA2VA_TEST_UNSET, which is not set"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        PatientIds(config)


def test_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SA2VA_TEST_KEY", "secret")
    ids = PatientIds(REGEX | {"key_env": "SA2VA_TEST_KEY"})
    assert ids.pseudonyms(["P01"]) == [pseudonym("P01", "secret")]
    assert ids.frame_names(["P01_a.png"], ["P01"]) != PatientIds(REGEX).frame_names(
        ["P01_a.png"], ["P01"]
    )


def test_frame_names_hold_no_raw_name_and_are_unique():
    names = ["P01_a.png", "P01_b.png", "x/P01_b.png", "P02_a.png", "x/P01_b.tif"]
    raw = ["P01", "P01", "P01", "P02", "P01"]
    frames = PatientIds(REGEX).frame_names(names, raw)
    assert len(set(frames)) == 5
    assert all(re.fullmatch(r"patient_[0-9a-f]{8}_[0-9a-f]{6}", frame) for frame in frames)
    assert frames[0].endswith(hashlib.sha256(b"P01_a").hexdigest()[:6])
    assert not any("P0" in frame for frame in frames)


def test_colliding_hashes_get_longer(monkeypatch):
    from projects.sa2va.datasets import patients

    real = patients._digest
    monkeypatch.setattr(patients, "_digest", lambda text, key: "0" * 8 + real(text, key))
    ids = PatientIds(REGEX)
    frames = ids.frame_names(["P01_a.png", "P01_b.png"], ["P01", "P01"])
    assert len(set(frames)) == 2 and all(len(f) > len("patient_00000000_000000") for f in frames)
    with pytest.raises(DataError, match=r"(?s)same pseudonym.*key_env"):
        ids.pseudonyms(["P01", "P02"])


def test_stem_names():
    assert stem_names(["a.png", "x/b.png"]) == ["a", "b"]
    assert stem_names(["a.png", "x/a.png", "y/a.png"]) == ["a", "x_a", "y_a"]
    assert stem_names(["a.png", "a.jpg"]) == ["a_png", "a_jpg"]
    assert stem_names(["a.png", "a.png"]) == ["a_png", "a_png_2"]


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b", "a_2_2"]), max_size=12))
def test_numbered_names_are_unique_and_keep_what_is_free(names):
    out = numbered(names)
    assert len(set(out)) == len(names)
    assert all(new.startswith(old) for old, new in zip(names, out, strict=True))
    assert {out[names.index(name)] for name in names} == set(names)


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "x/", "x/y/", "x_"]), st.sampled_from(["a", "b", "y_a"])),
        max_size=10,
    )
)
def test_stem_names_are_always_unique(parts):
    names = [f"{folder}{stem}.png" for folder, stem in parts]
    assert len(set(stem_names(names))) == len(names)
