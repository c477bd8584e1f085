"""Routes, start and end (FastAPI, uvicorn).

Gradio's server is mounted below an application of ours, which answers first:

* what the page does not need is refused (:mod:`.guard`);
* uploads go to :class:`~.files.PrivateFolder` under names of ours, within the limit of bytes;
* pictures and files of results are made when they are asked for, and lie on no disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...errors import SetupError, UserError
from . import drawing
from .desk import Desk, Inferencer
from .files import PrivateFolder
from .guard import Guard
from .style import STYLE
from .uploads import Limits, too_many_bytes

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FORM_BYTES = 64 * 1024  # what a form adds to its file
_LAST_WORDS = 3  # seconds for answers under way; a browser's event stream never ends by itself


@dataclass(frozen=True)
class PageSettings:
    """How the page is served.

    Attributes:
        text: what is asked at first.
        host, port: where it listens; port 0 is any that is free.
        limits: of uploads.
        queue: how many may wait for the model.
        keep_mib: frames and results in memory, of all visitors together.
    """

    text: str
    host: str = "127.0.0.1"
    port: int = 7860
    limits: Limits = field(default_factory=Limits)
    queue: int = 16
    keep_mib: int = 1024


def listen(host: str, port: int) -> socket.socket:
    """Takes the port, before a model is loaded for minutes.

    Raises:
        SetupError: it is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen()
    except (OSError, OverflowError) as error:
        taken.close()
        raise SetupError(
            found=f"cannot listen at {host}:{port} ({error})",
            expected="an address of this machine, and a port that is free",
            fix="give another --port (0: any that is free), or correct --host",
        ) from error
    return taken


def address(taken: socket.socket) -> str:
    """Where a browser finds the page."""
    host, port = taken.getsockname()[:2]
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def serve(
    inferencer: Inferencer,
    settings: PageSettings,
    taken: socket.socket,
    examples: Sequence[Path | np.ndarray] = (),
) -> None:
    """Serves the page until it is interrupted; then the private folder is removed.

    Args:
        inferencer: the loaded model.
        settings: text, limits and queue.
        taken: from :func:`listen`.
        examples: frames to choose from, files or uint8 [H, W, 3].
    """
    with tempfile.TemporaryDirectory(prefix="sa2va-page-", ignore_cleanup_errors=True) as folder:
        app = make_app(inferencer, settings, Path(folder), examples)
        # Access logs hold paths of results; nothing of a visitor is logged.
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_WORDS
        )
        with _ended_by_signals():
            uvicorn.Server(config).run(sockets=[taken])


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block, and what is around it cleans up.

    uvicorn raises a signal that ended it once more; SIGTERM would end the process there.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def make_app(
    inferencer: Inferencer,
    settings: PageSettings,
    folder: Path,
    examples: Sequence[Path | np.ndarray] = (),
) -> FastAPI:
    """The application: our routes, and Gradio's below them.

    Args:
        inferencer: the loaded model.
        settings: see :class:`PageSettings`.
        folder: private; everything that is written to a disk is in it.
        examples: frames to choose from.
    """
    private = PrivateFolder(folder)
    # Gradio reads these when a page is built.
    os.environ["GRADIO_TEMP_DIR"] = str(private.root)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(private.root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from .layout import build_page

    desk = Desk(
        inferencer,
        settings.limits,
        private,
        keep_bytes=settings.keep_mib * 2**20,
        examples=examples,
    )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_results(app, desk)
    _add_uploads(app, desk)
    page = build_page(desk, text=settings.text, queue=settings.queue)
    fonts = ["system-ui", "sans-serif"]  # a name alone is a font of the machine
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=settings.host,
        # The theme's own grey is too light to read on white.
        theme=theme.set(body_text_color_subdued="*neutral_500"),
        css=STYLE,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
    )
    # Gradio sets this in launch() alone; unset, a request may name any file of this machine as its
    # upload (processing_utils._check_allowed of 6.31).
    page.has_launched = True
    app.add_middleware(Guard, root=private.root)
    if settings.host in LOOPBACK:
        # Or a site in the same browser could read the page under a name that points here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    return app


def _add_results(app: FastAPI, desk: Desk) -> None:
    @app.get("/results/{token}/view/{kind}.png")
    def view(token: str, kind: str, threshold: float | None = None) -> Response:
        if kind not in drawing.VIEWS:
            return PlainTextResponse("not found", 404)
        return _answer(lambda: desk.view(token, kind, threshold), "image/png", {})

    @app.get("/results/{token}/file/{name}")
    def file(token: str, name: str, threshold: float | None = None) -> Response:
        if name not in drawing.FILES:
            return PlainTextResponse("not found", 404)
        kind = "image/png" if name.endswith(".png") else "application/octet-stream"
        saved = {"Content-Disposition": f'attachment; filename="vessel_{name}"'}
        return _answer(lambda: desk.file(token, name, threshold), kind, saved)


def _answer(make: Callable[[], bytes], kind: str, headers: dict[str, str]) -> Response:
    try:
        return Response(make(), 200, {"Cache-Control": "private, no-store", **headers}, kind)
    except UserError as error:
        return PlainTextResponse(str(error), 404)


def _add_uploads(app: FastAPI, desk: Desk) -> None:
    """In place of Gradio's, which keeps names and has one folder for equal files."""

    @app.post("/gradio_api/upload")
    async def upload(request: Request) -> Response:
        size = request.headers.get("content-length", "")
        if not size.isdigit():
            return PlainTextResponse("a Content-Length is needed", 411)
        if int(size) > desk.limits.max_bytes + _FORM_BYTES:
            return PlainTextResponse(str(too_many_bytes(int(size), desk.limits)), 413)
        desk.folder.sweep()
        async with request.form(max_files=1, max_fields=1) as form:
            given = form.get("files")
            if not isinstance(given, UploadFile):
                return PlainTextResponse("one file is needed, in the field 'files'", 400)
            return JSONResponse([str(desk.folder.put_upload(given.file, given.filename))])

    @app.get("/gradio_api/upload_progress")
    def progress() -> Response:
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
