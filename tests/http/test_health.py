"""Health over HTTP."""

from __future__ import annotations

import httpx

from bxmesh.server.embedded import EmbeddedMesh
from tests.http.gateways import gateway, http_client, problem
from tests.http.keys import make_key


async def test_anyone_may_ask_whether_it_serves(url: str) -> None:
    async with http_client(url) as stranger:
        answer = await stranger.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


async def test_operators_see_details(http: httpx.AsyncClient) -> None:
    told = (await http.get("/health/detailed")).json()
    components = {one["name"]: one for one in told["components"]}
    assert {"redis", "database", "geometry_workers", "disk", "memory", "hosts"} <= set(components)
    assert told["summary"]["total"] == len(components)
    assert components["geometry_workers"]["details"]["workers"] == "1"
    assert all(one["message"] and one["response_time"] > 0 for one in components.values())


async def test_others_see_states(url: str, http_mesh: EmbeddedMesh) -> None:
    key = await make_key(http_mesh, "http-looker", roles=["reader"])
    async with http_client(url, key) as looker:
        told = (await looker.get("/health/detailed")).json()
    assert told["components"]
    assert not any(one["message"] or one["details"] for one in told["components"])


async def test_a_mesh_that_is_away() -> None:
    async with gateway("127.0.0.1:1") as url, http_client(url, "bx_key") as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "unhealthy"})
        away = await client.get("/health/detailed")
        problem(away, 503, "UNAVAILABLE")
        assert int(away.headers["retry-after"]) >= 1
