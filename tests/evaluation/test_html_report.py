"""The page about a test run: what the files say, escaped, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from projects.sa2va.config import load_config
from projects.sa2va.errors import DataError
from projects.sa2va.evaluation import METRIC_NAMES, VesselMetric
from projects.sa2va.evaluation.guards import SuspectResultsError
from projects.sa2va.evaluation.html_files import RunFiles
from projects.sa2va.evaluation.html_provenance import DEFINITIONS
from projects.sa2va.evaluation.html_report import html_report, write_html_report
from projects.sa2va.evaluation.html_threshold import reliability_section, threshold_section
from projects.sa2va.html import join
from tests.conftest import ROOT
from tests.evaluation.test_vessel_metric import FRAMES, feed, item
from tests.test_html import Elements, loads_nothing

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def write_run(folder: Path, out: Path, /, **settings) -> Path:
    """A results folder, written by the evaluator itself."""
    metric = VesselMetric(
        threshold=0.5, out_dir=out, metric_set=["cldice", "hd95"], bootstrap=100, **settings
    )
    metric.set_provenance(
        {
            "answer_mode": "choice",
            "presence_threshold": 0.2,
            "checkpoint": {"source": "/secret/jane_doe/best.pth", "sha256": "ab" * 32},
            "weights": {
                "parts": [{"part": "LoRA", "source": "/secret/jane_doe/best.pth", "tensors": 4}],
                "notes": ["copied from '/secret/jane_doe/base' whole"],
            },
            "config": "/secret/jane_doe/demo.py",
            "split": "1" * 64,
            "software": {"git_commit": "c0ffee", "torch": "2.13.0"},
        }
    )
    items = [item(index, folder) for index in range(FRAMES)]
    _, meta, prediction = items[1]
    meta["phrases"] = [EVIL]
    prediction.answers[0] = EVIL
    feed(metric, items)
    metric.evaluate(FRAMES)
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    choice = {"best": 1, "worst": 1, "random": 1}
    return write_run(folder, folder / "out", pictures=choice, html_report=True)


@pytest.fixture
def run(written, tmp_path) -> Path:
    """A folder of the test's own."""
    return Path(shutil.copytree(written, tmp_path / "out"))


def changed(run: Path, **keys) -> RunFiles:
    """The files after changes of metrics.json."""
    path = run / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return RunFiles(run)


def change(run: Path, **keys) -> str:
    """The page after changes of metrics.json."""
    return html_report(changed(run, **keys))


def section(page: str, title: str) -> str:
    return re.search(rf"<h2>{title}</h2>(.*?)(?=<h2>|<script>|</body>)", page, re.DOTALL)[1]


def test_the_evaluator_writes_the_page_that_the_files_give(written):
    assert (written / "report.html").read_text() == html_report(RunFiles(written))


def test_the_shipped_configs_ask_for_it():
    cfg = load_config(ROOT / "projects/sa2va/configs/sa2va_demo.py")
    assert cfg.test_evaluator.html_report is True and cfg.tensorboard is False


def test_the_page_stands_alone_and_all_is_escaped(written):
    page = (written / "report.html").read_text()
    elements = Elements(page)
    assert loads_nothing(elements)
    assert elements.names().count("script") == 1, "the sorting of tables, and nothing else"
    pictures = [attributes for name, attributes in elements.found if name == "img"]
    assert len(pictures) == 3, "overview.png would show the same frames again"
    assert not any("onerror" in attributes for _, attributes in elements.found)
    assert EVIL in "".join(elements.text)
    assert len(page) < 5e6


def test_it_names_no_folder_and_no_image(written):
    page = (written / "report.html").read_text()
    assert "jane_doe" not in page and "secret" not in page
    assert str(written.parent) not in page
    assert not re.search(r"image\d\.png", page)
    assert "best.pth" in page and "demo.py" in page


def test_the_numbers_are_those_of_the_files(run):
    report = json.loads((run / "metrics.json").read_text())
    page = html_report(RunFiles(run))
    summary = section(page, "Summary")
    for kind in ("mean", "patient_mean", "pooled"):
        low, high = report["intervals"][kind]["dice"]
        assert f"{report[kind]['dice']:.3f} [{low:.3f}, {high:.3f}]" in summary
    assert f"<b>{report['patient_mean']['dice']:.3f}</b>" in summary
    assert f"<b>{report['patient_mean']['hd95']:.2f}</b>" in summary
    assert f"<td>{report['undefined']['mean']['hd95']}</td>" in summary
    patients = section(page, "Patients")
    for patient, values in report["per_patient"].items():
        assert f"<td>{patient}</td><td>{values['rows']}</td><td>{values['dice']:.3f}" in patients
    assert section(page, "All frames").count("<tr>") == 1 + len(report["per_frame"])
    provenance = section(page, "Provenance")
    assert "c0ffee" in provenance and "abab" in provenance
    assert "<td>answered as present from</td><td>0.2</td>" in provenance


def test_failures_are_listed_with_their_reason(run):
    failures = section(html_report(RunFiles(run)), "Failures")
    lines = re.findall(r"<tr><td>(frame\d)</td>.*?</tr>", failures)
    assert lines == ["frame2", "frame4"]
    assert "no [SEG] in the answer; empty prediction" in failures
    assert "predicted where the truth is empty" in failures


def test_a_run_that_is_not_valid_says_so(run):
    page = change(run, valid=False, invalid_because=["copies <of> the truth"])
    assert "These are no results." in page and "copies &lt;of&gt; the truth" in page
    assert page.index("These are no results.") < page.index("<h2>Summary</h2>")
    clean = change(run, valid=True, invalid_because=[], warnings=[])
    assert "These are no results." not in clean and "Valid; no warnings." in clean


def test_an_error_about_copies_comes_after_the_page(tmp_path):
    class Copy(VesselMetric):
        """Predicts the truth."""

    metric = Copy(threshold=0.5, out_dir=tmp_path / "out", pictures=None, html_report=True)
    items = [item(index, tmp_path) for index in range(3)]
    for truth, _, prediction in items:
        prediction.probabilities, prediction.seg_emitted = truth.float(), [True] * len(truth)
    feed(metric, items)
    with pytest.raises(SuspectResultsError):
        metric.evaluate(3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "These are no results." in page and "predicted to the pixel" in page


def test_pictures_of_another_run_are_left_out(run):
    path = next((run / "pictures").glob("worst_*.png"))
    path.rename(path.with_name(re.sub(r"dice\d\.\d+", "dice0.999", path.name)))
    assert [panel.kind for panel in RunFiles(run).panels] == ["best", "random"]
    shutil.rmtree(run / "pictures")
    page = html_report(RunFiles(run))
    assert "There are no pictures of this run" in page and "data:image" not in page


def test_a_damaged_picture_is_named(run):
    path = next((run / "pictures").glob("worst_*.png"))
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read"):
        html_report(RunFiles(run))


def test_without_patients_the_reader_is_warned(run):
    report = json.loads((run / "metrics.json").read_text())
    counts = {**report["counts"], "patients": 0}
    page = change(run, counts=counts, per_patient={}, intervals=None)
    assert "name no patient before the page is passed on" in page
    assert "No patient ids are configured (key" in section(page, "Patients")
    assert "No intervals were computed" in page


def test_the_curve_over_thresholds(run):
    assert "not measured here" in join(threshold_section(RunFiles(run)))
    keys = ("threshold", "low", "min_area", "value", "band_low", "band_high")
    lines = [(0.4, None, 0, 0.6, 0.5, 0.7), (0.5, None, 0, 0.6, None, None)]
    lines += [(0.4, 0.2, 30, 0.65, 0.6, 0.7), (0.5, 0.2, 30, 0.7, 0.6, 0.8)]
    content = {
        "target": {"metric": "dice", "beta": 1.0, "average": "patients"},
        "choice": {"threshold": 0.5, "low": 0.2, "min_area": 30},
        "value": 0.7,
        "plateau": None,
        "bootstrap": {"level": 0.95, "clusters": 7, "unit": "patient"},
        "curve": [dict(zip(keys, line, strict=True)) for line in lines],
    }
    path = run / "threshold_curve.json"
    path.write_text(json.dumps(content))
    source = {"kind": "tuned", "file": "/secret/best.threshold.json", "beta": None}
    post = {"low": None, "min_area": 30}
    shown = join(threshold_section(changed(run, threshold_source=source, postprocess=post)))
    assert "<svg" in shown and "pieces of fewer than 30 px removed" in shown
    assert "dice (mean over patients) 0.7000 at 0.5 (band: 95%, 7 patients)" in shown
    assert "best.threshold.json" in shown and "secret" not in shown and "beta" not in shown
    words = {**content, "curve": [{**content["curve"][0], "value": "x"}]}
    for broken in ("threshold,value\n0.5,1\n", "[]", json.dumps(words), "{}"):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"threshold_curve\.json cannot be read"):
            threshold_section(RunFiles(run))


def test_reliability_is_shown_where_it_was_measured(run):
    report = json.loads((run / "metrics.json").read_text())
    shown = join(reliability_section(RunFiles(run)))
    assert f"{report['calibration']['ece']:.4f}" in shown and "<svg" in shown
    absent = join(reliability_section(changed(run, calibration=None)))
    assert "Not measured" in absent and "<svg" not in absent


def test_every_metric_is_defined():
    assert set(DEFINITIONS) == set(METRIC_NAMES)


def test_a_folder_without_results_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"no metrics\.json"):
        write_html_report(tmp_path)
    report = json.loads((run / "metrics.json").read_text())
    del report["counts"]
    (run / "metrics.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="lacks counts"):
        write_html_report(run)
