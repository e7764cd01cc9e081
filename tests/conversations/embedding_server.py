"""A server of embeddings whose model knows a few words, and which words mean the same."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MEANINGS = (
    {"cat", "kitten"},
    {"dog", "puppy"},
    {"ligand", "inhibitor"},
    {"density", "map"},
    {"water", "solvent"},
)
DIMENSION = len(MEANINGS) + 1


class EmbeddingServer(ThreadingHTTPServer):
    """Keeps what it was asked, and answers wrongly when it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.texts: list[str] = []
        self.models: list[str] = []
        self.keys: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        self.refused = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.was_asked = threading.Event()
        self.looked_at = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: EmbeddingServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Which models it has; no work, which costs."""
        server = self.server
        server.looked_at += 1
        server.may_answer.wait(30)
        assert self.path == "/v1/models"
        server.keys.append(self.headers.get("Authorization", ""))
        self._answer(server.status, b'{"data": [{"id": "small"}]}')

    def do_POST(self) -> None:
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.was_asked.set()
        server.may_answer.wait(30)
        assert self.path == "/v1/embeddings"
        server.texts += asked["input"]
        server.models.append(asked["model"])
        server.keys.append(self.headers.get("Authorization", ""))
        status = server.status
        if server.refused and any(server.refused in text for text in asked["input"]):
            status = 400
        rows = [
            {"index": index, "embedding": _vector(text)}
            for index, text in enumerate(asked["input"])
        ]
        # Nothing says that they come in order.
        self._answer(status, server.body or json.dumps({"data": rows[::-1]}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _vector(text: str) -> list[float]:
    words = re.findall("[a-z]+", text.lower())
    return [float(sum(word in meaning for word in words)) for meaning in MEANINGS] + [0.1]


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    """A server within a block."""
    with EmbeddingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
            thread.join()
