"""The server over HTTP: the endpoint, what is refused, and what is left on the disk."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

from projects.sa2va.errors import SetupError
from projects.sa2va.inference.page.server import address, listen
from tests.conftest import ROOT

from .conftest import LIMITS, Running, frame, png, running
from .standin import StandIn
from .test_drawing import decoded

API = "/gradio_api"


def upload(page: Running, content: bytes, name: str = "Smith.png") -> httpx.Response:
    return httpx.post(f"{page.url}{API}/upload", files={"files": (name, content)})


def call(page: Running, path: object, *rest: object) -> httpx.Response:
    """Puts a prediction into the queue."""
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return httpx.post(f"{page.url}{API}/call/predict", json={"data": [image, *rest]})


def answer(page: Running, called: httpx.Response) -> tuple[str, object]:
    """Waits for a prediction; returns the last event and its data."""
    event = called.json()["event_id"]
    lines = httpx.get(f"{page.url}{API}/call/predict/{event}", timeout=30).text.split("\n")
    said = [line for line in lines if line.startswith(("event: ", "data: "))]
    return said[-2].removeprefix("event: "), json.loads(said[-1].removeprefix("data: "))


def test_plain_http(page):
    image = frame(seed=3)
    (path,) = upload(page, png(image)).json()
    assert Path(path).name == "upload.png"
    event, data = answer(page, call(page, path, "blood vessel", 0.6))
    assert event == "complete" and not Path(path).exists()
    mask, probability, said, threshold, numbers = data
    expected = image[..., 0].astype(np.float32) / 255
    np.testing.assert_array_equal(
        decoded(httpx.get(mask["url"]).content), np.where(expected >= 0.6, 255, 0)
    )
    deep = decoded(httpx.get(probability["url"]).content) / 65535
    np.testing.assert_allclose(deep, expected, atol=1e-5)
    assert (said, threshold) == ("Sure, [SEG].", 0.6)
    assert numbers["mask_pixels"] == (expected >= 0.6).sum()
    assert (numbers["width"], numbers["height"]) == (64, 48) and numbers["seg_emitted"]
    assert numbers["mask_share"] == pytest.approx((expected >= 0.6).mean())
    assert page.inferencer.asked[-1] == (image.shape, "blood vessel")


def test_the_example_in_the_documents(page, tmp_path, monkeypatch, capsys):
    """docs/page.md shows a program: it is run as it stands there."""
    text = (ROOT / "docs" / "page.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:7860" in code and '"frame.png"' in code
    image = frame(seed=4)
    (tmp_path / "frame.png").write_bytes(png(image))
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("http://127.0.0.1:7860", page.url), "docs/page.md", "exec"), {})
    mask = decoded((tmp_path / "mask.png").read_bytes())
    np.testing.assert_array_equal(mask, np.where(image[..., 0] / np.float32(255) >= 0.5, 255, 0))
    assert "Sure, [SEG]." in capsys.readouterr().out


def test_the_curl_lines_in_the_documents_name_what_is_there():
    text = (ROOT / "docs" / "page.md").read_text()
    assert f"{API}/upload" in text and f"{API}/call/predict" in text
    assert '"_type": "gradio.FileData"' in text


def test_defaults_and_errors_of_the_client(page, tmp_path):
    (tmp_path / "frame.png").write_bytes(png(frame()))
    client = Client(page.url, verbose=False, download_files=str(tmp_path))
    *_, threshold, _ = client.predict(handle_file(tmp_path / "frame.png"), api_name="/predict")
    assert threshold == page.inferencer.threshold
    assert page.inferencer.asked[-1][1] == "blood vessel"
    (tmp_path / "bad.png").write_text("a letter")
    with pytest.raises(Exception, match="found: the uploaded file is not an image"):
        client.predict(handle_file(tmp_path / "bad.png"), api_name="/predict")
    with pytest.raises(Exception, match="threshold=7"):
        client.predict(handle_file(tmp_path / "frame.png"), threshold=7, api_name="/predict")
    client.close()


def test_the_endpoint_is_described(page):
    info = httpx.get(f"{page.url}{API}/info").json()["named_endpoints"]
    assert list(info) == ["/predict"]
    names = [one["parameter_name"] for one in info["/predict"]["parameters"]]
    assert names == ["image", "text", "threshold"]
    labels = [one["label"] for one in info["/predict"]["returns"]]
    assert labels == ["mask", "probability", "answer", "threshold", "numbers"]


READS = [
    *("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd"),
    *("/gradio_api/file=%2fetc%2fpasswd", "/gradio_api/file=///etc/passwd", "/file=/etc/passwd"),
    f"/gradio_api/file={ROOT}/README.md",
    *("/gradio_api/file=README.md", "/gradio_api/file/etc/passwd"),
    *("/static/../../../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py"),
    *("/svelte/%2e%2e%2f%2e%2e%2froutes.py", "/results/x/file/..%2f..%2fmask.png"),
    *("/results/x/view/mask.png", "/results/x/file/mask.png", "/results/x/view/none.png"),
    # What would make the server ask another one.
    *("/gradio_api/file=http://127.0.0.1:9/x", "/gradio_api/file=https:/example.org"),
    *("/gradio_api/proxy=http://127.0.0.1:9/x", "/gradio_api/vibe-starter-queries/"),
    # What the page does not need.
    *("/gradio_api/runs", "/monitoring", "/docs", "/openapi.json", "/gradio_api/openapi.json"),
]


@pytest.mark.parametrize("path", READS)
def test_nothing_else_can_be_read(page, path):
    with httpx.Client() as client:
        # httpx would tidy the path away.
        request = client.build_request("GET", page.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        found = client.send(request)
    assert found.status_code in (403, 404), found.text
    assert "root:" not in found.text and "vessel" not in found.text


PATHS = (
    "/etc/passwd",
    "http://127.0.0.1:9/x.png",
    "../../etc/passwd",
    "short/../../x",
    "",
    5,
    None,
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_else_can_be_named_as_an_upload(page, path):
    found = call(page, path, "vessel", None)
    assert found.status_code == 400 and "was not uploaded to this page" in found.text
    nested = {"data": [{"x": [{"path": path}]}, "a", "b"], "fn_index": 0, "session_hash": "s"}
    for route in ("queue/join", "run/predict"):
        assert httpx.post(f"{page.url}{API}/{route}", json=nested).status_code == 400


def test_gradio_itself_refuses_files_of_others(page, tmp_path):
    """Behind our check, so that one of the two can fail: see has_launched in server.py."""
    from starlette.testclient import TestClient

    (tmp_path / "secret.png").write_bytes(png(frame()))
    inner = page.app.routes[-1].app
    with TestClient(inner) as client:
        image = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
        event = client.post(f"{API}/call/predict", json={"data": [image, "vessel", None]}).json()
        said = client.get(f"{API}/call/predict/{event['event_id']}").text
    assert "event: error" in said


def test_limits_of_requests(page):
    asked = len(page.inferencer.asked)
    found = upload(page, bytes(LIMITS.max_bytes + 2**17))
    assert found.status_code == 413
    assert "expected: at most 0.5 MiB\n  what to do: " in found.text
    chunks = httpx.post(f"{page.url}{API}/upload", content=iter([b"x"]))
    assert chunks.status_code == 411
    for broken in ({"other": ("a", b"b")}, {"files": ("", b"")}):
        assert httpx.post(f"{page.url}{API}/upload", files=broken).status_code == 400
    big = json.dumps({"data": ["x" * 2**20]}).encode()
    assert httpx.post(f"{page.url}{API}/queue/join", content=big).status_code == 413
    for text in (b"no json", b"[" * 200_000):
        assert httpx.post(f"{page.url}{API}/queue/join", content=text).status_code == 400
    assert len(page.inferencer.asked) == asked


def test_other_names_of_this_machine_are_refused(page):
    assert httpx.get(page.url, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(page.url, headers={"Host": "localhost:1"}).status_code == 200


def test_browsers_are_told_to_stay_here(page):
    headers = httpx.get(page.url).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_names_are_neither_kept_nor_logged(page, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    for content in (png(frame()), b"a letter"):
        (path,) = upload(page, content, "Smith^John.png").json()
        answer(page, call(page, path, "vessel", None))
    assert not [path for path in page.root.rglob("*") if "Smith" in str(path)]
    printed = capfd.readouterr()
    assert "Smith" not in caplog.text + printed.out + printed.err


def test_the_queue_has_an_end(tmp_path):
    """One is predicted, one waits, the third is refused."""
    waiting = StandIn()
    waiting.go.clear()
    with running(waiting, tmp_path, queue=1) as page:
        paths = [upload(page, png(frame(seed=seed))).json()[0] for seed in range(3)]
        first = call(page, paths[0], "vessel", None)
        while not (page.root / "short").exists() or Path(paths[0]).exists():
            time.sleep(0.02)
        second = call(page, paths[1], "vessel", None)
        third = call(page, paths[2], "vessel", None)
        waiting.go.set()
        assert third.status_code == 503 and "Queue is full" in third.text
        assert [answer(page, one)[0] for one in (first, second)] == ["complete"] * 2
    assert len(waiting.asked) == 2


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}(.|\n)*--port"):
            listen("127.0.0.1", port)
    for host, number in (("203.0.113.7", 0), ("127.0.0.1", 99999)):
        with pytest.raises(SetupError, match="cannot listen"):
            listen(host, number)
