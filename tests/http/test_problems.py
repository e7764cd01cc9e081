"""What is refused, and how that is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from pydantic import BaseModel, ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bxmesh.client.errors import BxmeshError, from_status
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.errors import resource_exhausted
from bxmesh.server.http.limits import Places, Refusals
from bxmesh.server.http.problems import STATUSES, invalid_values, problem_of, response_of
from tests.http.gateways import gateway, http_client, problem
from tests.http.keys import admin_key, make_key


async def test_keys(url: str, http_mesh: EmbeddedMesh) -> None:
    async with http_client(url) as stranger:
        missing = await stranger.get("/health/detailed")
        problem(missing, 401, "KEY_MISSING")
        assert missing.headers["www-authenticate"].startswith("Bearer")
        for header in ("Basic eDp5", "Bearer"):
            answer = await stranger.get("/statistics", headers={"authorization": header})
            problem(answer, 401, "KEY_MISSING")
        for key in ("nobody's", "x" * 5000, "a b"):
            answer = await stranger.get("/statistics", headers={"authorization": f"Bearer {key}"})
            problem(answer, 401, "KEY_INVALID")
        answer = await stranger.get("/health/detailed", headers={"x-api-key": admin_key(http_mesh)})
        assert answer.status_code == 200


async def test_permissions_are_those_of_the_key(url: str, http_mesh: EmbeddedMesh) -> None:
    key = await make_key(http_mesh, "http-reader", roles=["reader"])
    async with http_client(url, key) as reader:
        answer = await reader.post("/chat", json={"message": "hello"})
        found = problem(answer, 403, "PERMISSION_MISSING")
        assert "conversation_write" in found.detail
        cleanup = {"begun_before": "2026-01-01T00:00:00Z"}
        problem(await reader.post("/admin/cleanup", json=cleanup), 403, "PERMISSION_MISSING")


async def test_paths_and_methods(http: httpx.AsyncClient) -> None:
    problem(await http.get("/nowhere"), 404, "PATH_NOT_FOUND")
    answer = await http.delete("/chat")
    problem(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "kind", "status", "reason"),
    [
        (b"{", "application/json", 400, "INVALID_ARGUMENT"),
        (b"[]", "application/json", 400, "INVALID_ARGUMENT"),
        (b"{}", "application/json", 400, "INVALID_ARGUMENT"),
        (b"", "application/json", 400, "INVALID_ARGUMENT"),
        (b"\xff\xfe", "application/json", 400, "INVALID_ARGUMENT"),
        (b'{"message":"hi","colour":1}', "application/json", 400, "INVALID_ARGUMENT"),
        (b'{"message":"hi","participants":[{}]}', "application/json", 400, "INVALID_ARGUMENT"),
        (b"[" * 100_000, "application/json", 400, "INVALID_ARGUMENT"),
        (b'{"message":"hi","turns":NaN}', "application/json", 400, "INVALID_ARGUMENT"),
        (b'{"message":"hi","turns":1e400}', "application/json", 400, "INVALID_ARGUMENT"),
        (
            b'{"message":"hi","turns":%s}' % (b"9" * 5000),
            "application/json",
            400,
            "INVALID_ARGUMENT",
        ),
        (b'{"message":"\\ud800"}', "application/json", 400, "INVALID_ARGUMENT"),
        (b"message=hi", "application/x-www-form-urlencoded", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b"x" * (2 * 1024**2 + 1), "application/json", 413, "BODY_TOO_LARGE"),
    ],
)
async def test_bodies(
    http: httpx.AsyncClient, content: bytes, kind: str, status: int, reason: str
) -> None:
    answer = await http.post("/chat", content=content, headers={"content-type": kind})
    problem(answer, status, reason)


async def test_a_body_without_a_length_is_bounded_too(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield b" " * (1 << 16)

    headers = {"content-type": "application/json"}
    # It is not waited for: the connection may close before the answer is read.
    with contextlib.suppress(httpx.TransportError):
        problem(await http.post("/chat", content=endless(), headers=headers), 413, "BODY_TOO_LARGE")
    assert sent < 1 << 26


async def test_compressed_bodies_are_not_taken(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await http.post("/chat", content=b"x", headers=headers)
    problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


async def test_what_was_sent_is_not_repeated(http: httpx.AsyncClient) -> None:
    answer = await http.post("/chat", json={"message": "hi", "turns": "a secret"})
    found = problem(answer, 400, "INVALID_ARGUMENT")
    assert found.errors[0].field == "turns"
    assert "secret" not in answer.text


async def test_the_trace_of_a_caller_goes_on(http: httpx.AsyncClient) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    answer = await http.get("/conversations/none", headers=headers)
    assert answer.headers["bxmesh-trace-id"] == trace_id


async def test_a_body_that_stops_is_not_waited_for(http_mesh: EmbeddedMesh) -> None:
    async with gateway(http_mesh, receive_timeout=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + admin_key(http_mesh).encode() + b"\r\n"
            b'Content-Length: 100\r\n\r\n{"message":'
        )
        async with asyncio.timeout(30):
            status = await reader.readline()
        assert b" 408 " in status
        writer.close()
        await writer.wait_closed()


async def test_a_full_gateway_says_so(http_mesh: EmbeddedMesh) -> None:
    async with (
        gateway(http_mesh, max_requests=1, receive_timeout=30) as url,
        http_client(url, admin_key(http_mesh)) as http,
    ):
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + admin_key(http_mesh).encode() + b"\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        async with asyncio.timeout(30):
            while (answer := await http.get("/health")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        problem(answer, 503, "GATEWAY_FULL")
        assert answer.headers["retry-after"] == "1"
        writer.close()
        async with asyncio.timeout(30):
            while (await http.get("/health")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_sockets_of_other_origins(http_mesh: EmbeddedMesh) -> None:
    key = admin_key(http_mesh)
    async with gateway(http_mesh, cors_origins=("https://example.org",)) as url:
        place = url.replace("http", "ws", 1) + "/ws/new"
        protocols: Any = ["bxmesh.v1", f"bxmesh.bearer.{key}"]
        for origin in ("https://example.com", "https://example.org.example.com", "null"):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(place, subprotocols=protocols, origin=origin):  # type: ignore[arg-type]
                    pass
            assert refused.value.response.status_code == 403
        for origin in ("https://example.org", url):
            async with connect(place, subprotocols=protocols, origin=origin) as accepted:  # type: ignore[arg-type]
                assert accepted.subprotocol == "bxmesh.v1"


async def test_pages_of_other_origins(http_mesh: EmbeddedMesh) -> None:
    asked = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with gateway(http_mesh) as url, http_client(url) as http:
        assert (await http.options("/chat", headers=asked)).status_code == 400
        plain = await http.get("/health", headers={"origin": "https://example.org"})
        assert "access-control-allow-origin" not in plain.headers
    async with (
        gateway(http_mesh, cors_origins=("https://example.org",)) as url,
        http_client(url) as http,
    ):
        allowed = await http.options("/chat", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        refused = await http.get("/statistics", headers={"origin": "https://example.org"})
        # Pages can read refusals, too.
        assert refused.headers["access-control-allow-origin"] == "https://example.org"
        problem(refused, 401, "KEY_MISSING")
        other = {**asked, "origin": "https://example.com"}
        assert (await http.options("/chat", headers=other)).status_code == 400


def test_every_code_has_a_status() -> None:
    assert STATUSES.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    expected = {
        "INVALID_ARGUMENT": 400,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "NOT_FOUND": 404,
        "RESOURCE_EXHAUSTED": 429,
        "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504,
    }
    assert {code: STATUSES[grpc.StatusCode[code]] for code in expected} == expected


def test_a_quota_says_when_to_come_back() -> None:
    error = resource_exhausted("Too much.", retry_after=2.3, reason="QUOTA_SPENT")
    found = problem_of(from_status(error.to_status("t" * 32)))
    assert (found.status, found.reason, found.retry_after) == (429, "QUOTA_SPENT", 2.3)
    assert found.trace_id == "t" * 32
    assert response_of(found).headers["retry-after"] == "3"


def test_a_status_without_details() -> None:
    found = problem_of(from_status(status_pb2.Status(code=5, message="gone")))
    assert (found.status, found.code, found.detail) == (404, "NOT_FOUND", "gone")
    info = error_details_pb2.ErrorInfo(reason="NOT_HERE", domain="bxmesh")
    status = status_pb2.Status(code=5)
    status.details.add().Pack(info)
    assert problem_of(from_status(status)).type == "urn:bxmesh:problem:not-here"


def test_places_are_given_back() -> None:
    places = Places(1, "tests")
    with pytest.raises(KeyError):
        with places.take():
            with pytest.raises(BxmeshError):
                with places.take():
                    pass
            raise KeyError
    assert places.taken == 0


def test_wrong_keys_are_counted_by_host() -> None:
    refusals = Refusals(2)
    for address in ("192.0.2.1", "2001:db8::1", "2001:db8::2", "192.0.2.1"):
        refusals.note(address)
    for address in ("192.0.2.1", "2001:db8::3"):
        with pytest.raises(BxmeshError) as raised:
            refusals.check(address)
        assert problem_of(raised.value).status == 429
        assert raised.value.retry_after is not None
    refusals.check("192.0.2.2")
    for _ in range(10):
        refusals.note("127.0.0.1")
    refusals.check("127.0.0.1")


def test_long_input_makes_no_long_answer() -> None:
    class Model(BaseModel):
        names: dict[str, int]

    with pytest.raises(ValidationError) as raised:
        Model.model_validate({"names": {f"{'x' * 1000}{n}": "y" for n in range(1000)}})
    found: Any = problem_of(invalid_values(raised.value))
    assert len(found.errors) == 10
    assert len(found.model_dump_json()) < 10_000
