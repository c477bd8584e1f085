"""The page in Chromium, with a real model (tiny, untrained)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

from projects.sa2va.inference import Sa2VAInferencer
from tests.tiny_experiment import write_experiment

from .conftest import Running, running
from .test_drawing import decoded


class Counted:
    """A model that says how often it ran."""

    def __init__(self, inferencer: Sa2VAInferencer) -> None:
        self._inferencer, self.calls = inferencer, 0

    def __call__(self, images: Any, text: str, *, threshold: float | None = None) -> Any:
        self.calls += 1
        return self._inferencer(images, text, threshold=threshold)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inferencer, name)


@pytest.fixture(scope="module")
def experiment_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_experiment(folder, frames=(1, 1, 1))
    return folder


@pytest.fixture(scope="module")
def real(
    browser: Any, experiment_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The page over a real model. The browser first: without one nothing is built."""
    config = experiment_folder / "experiment.py"
    with Sa2VAInferencer(config, "none", device="cpu", threshold=0.4) as inferencer:
        model = Counted(inferencer)
        with running(model, tmp_path_factory.mktemp("real")) as page:
            yield page


class Watched:
    """A browser's tab, what it asked for, and what it complained of."""

    def __init__(self, browser: Any, url: str, width: int = 1280) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900})
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type == "error" else None,
        )
        self.tab.goto(url)
        self.tab.wait_for_selector("#run")

    def upload(self, path: Path) -> None:
        self.tab.set_input_files("#upload input[type=file]", path)

    def choose_example(self) -> None:
        self.tab.click("#examples button")
        self.tab.wait_for_selector("#stage img[data-view=frame]")

    def run(self) -> None:
        self.tab.click("#run")
        self.tab.wait_for_selector("#stage .v-numbers")

    def move_to(self, threshold: float) -> None:
        """Moves the slider as a hand does, to the step nearest to ``threshold``."""
        slider = self.tab.locator("#threshold input[type=range]")
        slider.evaluate(
            "(one, value) => { one.value = value;"
            " one.dispatchEvent(new Event('input', {bubbles: true})); }",
            threshold,
        )
        self.tab.wait_for_selector(f"#stage img[data-view=mask][src$='threshold={threshold}']")

    def picture(self, kind: str) -> np.ndarray:
        source = self.tab.get_attribute(f"#stage img[data-view={kind}]", "src")
        return decoded(httpx.get(self.tab.url + source).content)

    def shows_pictures(self) -> bool:
        """Whether every picture has been loaded."""
        self.tab.wait_for_function(
            "[...document.querySelectorAll('#stage img')].every(i => i.complete)"
        )
        return self.tab.evaluate(
            "[...document.querySelectorAll('#stage img')].every(i => i.naturalWidth > 0)"
        )

    def download(self, name: str) -> bytes:
        with self.tab.expect_download() as given:
            self.tab.click(f"#stage a[download='vessel_{name}']")
        assert given.value.suggested_filename == f"vessel_{name}"
        return Path(given.value.path()).read_bytes()


def test_upload_run_cut_download(browser, real, experiment_folder):
    (path,) = (experiment_folder / "data" / "test").rglob("images/*.png")
    page = Watched(browser, real.url)
    page.upload(path)
    page.tab.wait_for_selector("#stage img[data-view=frame]")
    assert real.inferencer.calls == 0
    page.run()
    assert page.shows_pictures() and real.inferencer.calls == 1
    result = real.inferencer._inferencer([path], "blood vessel")[0]
    np.testing.assert_array_equal(page.picture("frame"), result.image)
    np.testing.assert_array_equal(page.picture("mask") > 0, result.mask)
    text = page.tab.inner_text("#stage .v-numbers")
    assert f"{100 * result.mask.mean():.2f} %" in text and "0.4" in text
    assert result.answers[0] in text
    assert "At start: Threshold 0.4" in page.tab.inner_text("#why")

    # The middle of the probabilities, so that the mask must change.
    middle = round(float(np.median(result.probability)), 3)
    page.move_to(middle)
    cut = result.with_threshold(middle).mask
    assert cut.any() and not cut.all() and (cut != result.mask).any()
    np.testing.assert_array_equal(page.picture("mask") > 0, cut)
    assert f"{100 * cut.mean():.2f} %" in page.tab.inner_text("#stage .v-numbers")
    assert real.inferencer.calls == 1

    mask = decoded(page.download("mask.png"))
    np.testing.assert_array_equal(mask > 0, cut)
    deep = decoded(page.download("probability.png")) / 65535
    np.testing.assert_allclose(deep, result.probability, atol=1e-5)
    client = Client(real.url, verbose=False)
    answered, *_ = client.predict(
        handle_file(path), text="blood vessel", threshold=middle, api_name="/predict"
    )
    np.testing.assert_array_equal(decoded(Path(answered).read_bytes()), mask)
    client.close()

    assert page.errors == []
    assert {httpx.URL(url).netloc for url in page.requests if not url.startswith("data:")} == {
        httpx.URL(real.url).netloc
    }
    page.tab.close()


def test_messages_examples_and_layout(browser, page, tmp_path):
    seen, other = Watched(browser, page.url, 400), Watched(browser, page.url)
    (tmp_path / "Smith.png").write_text("a letter")
    seen.upload(tmp_path / "Smith.png")
    said = seen.tab.inner_text("#stage [role=alert]")
    assert re.search(r"not an image(.|\n)*Expected(.|\n)*What to do", said)
    assert "Smith" not in seen.tab.inner_text("body")
    seen.choose_example()
    # What one visitor chose is not there for another.
    other.tab.click("#run")
    other.tab.wait_for_selector("text=upload one, or choose an example")

    # What a model says is neither HTML nor a template.
    page.inferencer.answer = "<img src=x onerror=alert(1)> ${1 + 1} {{value}} [SEG]"
    seen.run()
    assert page.inferencer.asked[-1][0] == (40, 30, 3)
    assert page.inferencer.answer in seen.tab.inner_text("#stage .v-numbers")
    assert seen.errors == other.errors == []

    for width, columns in ((400, 1), (1280, 2)):
        seen.tab.set_viewport_size({"width": width, "height": 900})
        assert seen.tab.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [one.bounding_box() for one in seen.tab.locator("#stage figure").all()]
        assert len(boxes) == 4 and min(box["x"] for box in boxes) >= 0
        assert max(box["x"] + box["width"] for box in boxes) <= width
        assert len({round(box["x"]) for box in boxes}) == columns

    (tmp_path / "large.png").write_bytes(bytes(2**20))
    seen.upload(tmp_path / "large.png")
    seen.tab.wait_for_selector("text=expected: at most 0.5 MiB")
    seen.tab.close()
    other.tab.close()
