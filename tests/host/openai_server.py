"""A server that speaks as much of OpenAI's protocol as the tests need."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["OpenAIServer", "serving"]


class OpenAIServer(ThreadingHTTPServer):
    """Answers what it was told to, one after another, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.connections = 0
        self.answers: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def calls(self, name: str, **arguments: Any) -> None:
        """Answers with a call of a tool."""
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call-{len(self.answers)}", "type": "function", "function": function}
        self.answers.append({"role": "assistant", "content": None, "tool_calls": [call]})

    def says(self, text: str) -> None:
        """Answers with a text."""
        self.answers.append({"role": "assistant", "content": text})

    def refuses(self, status: int, message: str) -> None:
        """Answers with an error."""
        self.answers.append((status, {"error": {"message": message, "type": "error"}}))


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.asked.append(json.loads(self.rfile.read(length)))
        self.server.keys.append(self.headers.get("Authorization", ""))
        answer = self.server.answers.pop(0)
        if isinstance(answer, tuple):
            status, content = answer
        else:
            status = 200
            content = {
                "id": "answer",
                "object": "chat.completion",
                "created": 1,
                "model": "small",
                "choices": [
                    {
                        "index": 0,
                        "message": answer,
                        "finish_reason": "tool_calls" if "tool_calls" in answer else "stop",
                    }
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[OpenAIServer]:
    """A server within a block."""
    with OpenAIServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
