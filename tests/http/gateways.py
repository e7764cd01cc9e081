"""Gateways for the tests, and clients of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from bxmesh.client.endpoint import Endpoint
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.http.problems import PROBLEM, Problem
from bxmesh.server.http.serving import serving
from bxmesh.server.http.settings import HttpSettings

__all__ = ["gateway", "http_client", "problem"]


@asynccontextmanager
async def gateway(mesh: EmbeddedMesh | str, **options: Any) -> AsyncIterator[str]:
    """Serves HTTP for a mesh, or for an address; gives the URL."""
    address = mesh if isinstance(mesh, str) else mesh.address
    settings = HttpSettings(address="127.0.0.1:0", drain_grace=1, **options)
    async with serving(settings, Endpoint(address)) as url:
        yield url


@asynccontextmanager
async def http_client(url: str, key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=60, trust_env=False
    ) as client:
        yield client


def problem(response: httpx.Response, status: int, reason: str) -> Problem:
    """Returns the problem that a response is; fails when it is another."""
    assert response.headers["content-type"] == PROBLEM, response.text
    found = Problem.model_validate_json(response.content)
    assert (response.status_code, found.status) == (status, status), response.text
    assert found.reason == reason, response.text
    assert len(found.trace_id) == 32
    assert response.headers["bxmesh-trace-id"] == found.trace_id
    return found
