"""A desk and a server over a stand-in, and a browser where the machine has one."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from projects.sa2va.inference.page.desk import Desk, Inferencer
from projects.sa2va.inference.page.files import PrivateFolder
from projects.sa2va.inference.page.uploads import Limits

from .standin import StandIn

SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIMITS = Limits(max_side=200, max_mib=0.5)
EXAMPLE = np.full((40, 30, 3), 77, np.uint8)


def frame(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], grey, every level in it."""
    grey = np.random.default_rng(seed).integers(14, 256, (height, width), dtype=np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def png(array: np.ndarray) -> bytes:
    """An array as PNG."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@dataclass
class Running:
    """A server in a thread."""

    url: str
    root: Path
    app: Any
    inferencer: Inferencer


@contextlib.contextmanager
def running(inferencer: Inferencer, folder: Path, queue: int = 2) -> Iterator[Running]:
    """Serves the page in a thread of this process."""
    import uvicorn

    from projects.sa2va.inference.page.server import PageSettings, address, listen, make_app

    settings = PageSettings("blood vessel", port=0, limits=LIMITS, queue=queue)
    with listen(settings.host, settings.port) as taken, pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(name, "put back afterwards")
        app = make_app(inferencer, settings, folder, [EXAMPLE])
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            yield Running(address(taken), folder.resolve(), app, inferencer)
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def folder(tmp_path: Path) -> PrivateFolder:
    return PrivateFolder(tmp_path)


@pytest.fixture
def desk(folder: PrivateFolder) -> Desk:
    return Desk(StandIn(), LIMITS, folder, examples=[EXAMPLE])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The page over the stand-in."""
    with running(StandIn(), tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; SA2VA_BROWSER_TESTS=required makes its absence a failure, as .ci/run does."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get("SA2VA_BROWSER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*SWITCHES])
        yield browser
        browser.close()
