"""A server that speaks as much of OpenAI's protocol as the tests need, and breaks it when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

__all__ = ["OpenAIServer", "Raw", "Stream", "error", "serving"]

_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
_LONGEST_SECONDS = 60.0


class Raw(NamedTuple):
    """Bytes for an answer, whatever they are."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


class Stream(NamedTuple):
    """An answer piece by piece."""

    pieces: tuple[str, ...]
    usage: Any = _USAGE
    stalls: bool = False
    """Whether it ends when the server does, and not before."""
    breaks: bool = False
    """Whether the connection closes after the pieces."""
    model: Any = "small"


class OpenAIServer(ThreadingHTTPServer):
    """Answers what it was told to, one after another, and keeps what it was asked.

    A text is streamed to those who want a stream. `script`, if set, says what is answered to what.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.connections = 0
        self.answers: list[Any] = []
        self.script: Callable[[dict[str, Any]], Any] | None = None
        self.go_on = threading.Event()
        """Lets streams that stall end."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are nothing to write about."""

    def calls(self, name: str, **arguments: Any) -> None:
        """Answers with a call of a tool."""
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call-{len(self.answers)}", "type": "function", "function": function}
        self.answers.append({"role": "assistant", "content": None, "tool_calls": [call]})

    def says(self, text: str) -> None:
        """Answers with a text."""
        self.answers.append(text)

    def refuses(self, status: int, message: str) -> None:
        """Answers with an error."""
        self.answers.append(error(status, message))


def error(status: int, message: str, *headers: tuple[str, str]) -> Raw:
    """An error as OpenAI writes it."""
    content = {"error": {"message": message, "type": "error", "code": "test_error"}}
    return Raw(json.dumps(content).encode(), status=status, headers=headers)


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        server.asked.append(asked)
        server.keys.append(self.headers.get("Authorization", ""))
        answer = server.script(asked) if server.script else server.answers.pop(0)
        if isinstance(answer, Raw):
            self._whole(answer)
        elif isinstance(answer, Stream):
            self._stream(answer)
        elif asked.get("stream") and isinstance(answer, str):
            self._stream(Stream((answer,)))
        else:
            self._answer(answer)

    def _answer(self, answer: Any) -> None:
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        reason = "tool_calls" if "tool_calls" in message else "stop"
        content = {
            "id": "answer",
            "object": "chat.completion",
            "created": 1,
            "model": "small",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": _USAGE,
        }
        self._whole(Raw(json.dumps(content).encode()))

    def _whole(self, answer: Raw) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def _stream(self, answer: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, piece in enumerate(answer.pieces):
            delta = {"content": piece} if number else {"role": "assistant", "content": piece}
            self._chunk(answer, [{"index": 0, "delta": delta, "finish_reason": None}])
        if answer.breaks:
            self.close_connection = True
            return
        if answer.stalls and not self.server.go_on.wait(_LONGEST_SECONDS):
            return
        self._chunk(answer, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self._chunk(answer, [], usage=answer.usage)
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _chunk(self, answer: Stream, choices: list[Any], **fields: Any) -> None:
        content = {
            "id": "answer",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": answer.model,
            "choices": choices,
            **fields,
        }
        self._write(f"data: {json.dumps(content)}\n\n".encode())

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[OpenAIServer]:
    """A server within a block."""
    with OpenAIServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
