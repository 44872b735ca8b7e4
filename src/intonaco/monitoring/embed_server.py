"""A loopback endpoint that embeds: ``POST /embed {"texts": [...]} -> {"vectors": [[...]]}``, or
pictures with ``{"images": [base64 PNG, ...]}``.

Only for this workspace's own processes: it listens on 127.0.0.1 and wants the admin token.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MOST_TEXTS = 256  # in one request
MOST_IMAGES = 16
MOST_BYTES = 16 * 2**20
IDLE_SECONDS = 30.0

Embed = Callable[[Sequence[str]], NDArray[np.floating[Any]]]
EmbedImages = Callable[[Sequence[bytes]], NDArray[np.floating[Any]]]


class EmbedServer:
    """Serves ``embed``, and ``images`` if it is given, while the context is open."""

    def __init__(self, embed: Embed, token: str, images: EmbedImages | None = None) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(embed, token, images))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> EmbedServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(embed: Embed, token: str, images: EmbedImages | None) -> type[BaseHTTPRequestHandler]:
    expected = f"Bearer {token}".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_SECONDS

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            if not 0 < length <= MOST_BYTES:
                self.close_connection = True
                return self._answer(413, {"error": f"1 to {MOST_BYTES} bytes are taken"})
            body = self.rfile.read(length)
            if self.path != "/embed":
                return self._answer(404, {"error": "only POST /embed is served"})
            given = self.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return self._answer(401, {"error": "the admin token is needed"})
            try:
                asked = json.loads(body)
                texts, pictures = asked.get("texts"), asked.get("images")
            except (ValueError, AttributeError):
                texts = pictures = None
            if images is not None and _strings(pictures, MOST_IMAGES):
                try:
                    pngs = [base64.b64decode(p, validate=True) for p in pictures]
                except ValueError:
                    return self._answer(400, {"error": "images: not base64"})
                return self._embedded(lambda: images(pngs))
            if not _strings(texts, MOST_TEXTS):
                return self._answer(400, {"error": f'{{"texts": [1 to {MOST_TEXTS} strings]}}'})
            return self._embedded(lambda: embed(texts))

        def _embedded(self, embedded: Callable[[], NDArray[np.floating[Any]]]) -> None:
            try:
                vectors = embedded().tolist()
            except Exception:
                logger.exception("nothing can be embedded", extra={"action": "scorer.embed"})
                return self._answer(500, {"error": "the extractor failed; see the scorer's log"})
            return self._answer(200, {"vectors": vectors})

        def _answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Prompts stay out of logs, and the rest is of no use."""

    return Handler


def _strings(value: Any, most: int) -> bool:
    return isinstance(value, list) and 0 < len(value) <= most and all(type(v) is str for v in value)
