"""What the server answers at all, in front of Gradio's routes.

Gradio serves more than this page needs, and does more with a request: it fetches URLs that a
visitor names (as ``/gradio_api/file=https://...``, or as the path of an upload), forwards
(``/gradio_api/proxy=``), edits code (``/gradio_api/vibe-edit``). Here only the paths that the page
and its endpoint need are let through, and only files of the private folder can be named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.responses import PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import DataError

_JSON_BYTES = 2**20
_NEEDED = re.compile(
    r"/(|config|theme\.css|manifest\.json|favicon\.ico|robots\.txt"
    r"|(assets|static|svelte|results)/.*"
    r"|gradio_api/(info|startup-events|upload|upload_progress|theme\.css|queue/(join|data)"
    r"|run/predict|call/predict(/\w+)?|heartbeat/\w+|cancel|reset|file=(?!\w+:).+)/?)",
    re.DOTALL,
)
_HEADERS = {
    # Gradio's page needs inline scripts, and 'unsafe-eval' for the templates of gr.HTML.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses what the page does not need, and adds headers to every answer.

    Args:
        app: what is guarded.
        root: the only folder whose files a request may name.
    """

    def __init__(self, app: ASGIApp, root: Path) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 404, 413 or 400."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not _NEEDED.fullmatch(scope["path"]):
            await PlainTextResponse("not found", 404)(scope, receive, with_headers)
        elif scope["method"] == "POST" and scope["path"].rstrip("/") != "/gradio_api/upload":
            await self._post(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more and len(body) <= _JSON_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if more or len(body) > _JSON_BYTES:
            await PlainTextResponse(f"more than {_JSON_BYTES} bytes", 413)(scope, receive, send)
            return
        try:
            content = json.loads(body) if body else None
        except (ValueError, RecursionError):
            await PlainTextResponse("no JSON", 400)(scope, receive, send)
            return
        if not all(self._is_ours(path) for path in _paths(content)):
            refused = DataError(
                found="a file that was not uploaded to this page",
                expected="the path that POST /gradio_api/upload answered with",
                fix="upload the frame first (docs/page.md)",
            )
            await PlainTextResponse(str(refused), 400)(scope, receive, send)
            return
        handed_on = False

        async def again() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _is_ours(self, path: object) -> bool:
        # Gradio's own URLs would pass as relative paths, if they were not absolute first.
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            return False
        return Path(path).resolve().is_relative_to(self._root)


def _paths(content: Any) -> Iterator[object]:
    """Every ``path`` of an object in parsed JSON."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "path" in one:
                yield one["path"]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
