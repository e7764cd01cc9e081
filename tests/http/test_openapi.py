"""The document, and what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from bxmesh.server.http.api import OPERATIONS
from bxmesh.server.http.openapi import document


def test_every_operation_is_described() -> None:
    described = document(OPERATIONS)
    assert described["openapi"].startswith("3.1")
    found = {
        (method.upper(), path): one
        for path, methods in described["paths"].items()
        for method, one in methods.items()
    }
    assert found.keys() == {(one.method, one.path) for one in OPERATIONS}
    names = [one["operationId"] for one in found.values()]
    assert len(names) == len(set(names))
    for (_, path), one in found.items():
        assert one["summary"].endswith("."), path
        assert ("security" in one) == (path == "/health")
        for parameter in one.get("parameters", ()):
            assert parameter["description"], (path, parameter["name"])


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_leads_somewhere() -> None:
    described = document(OPERATIONS)
    schemas = described["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in references(described)} <= schemas.keys()
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "description" in schema, name


async def test_pages_need_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    served = (await http.get("/openapi.json")).json()
    assert served == document(OPERATIONS)
    for path in ("/docs", "/live"):
        page = await http.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "'self'" in page.headers["content-security-policy"]
        assert "//" not in page.text.replace("<!doctype", "")
    for name in ("docs.js", "live.js", "style.css"):
        assert (await http.get(f"/assets/{name}")).status_code == 200
        assert f"/assets/{name}" in (await http.get("/docs")).text + (await http.get("/live")).text
    assert (await http.get("/")).headers["location"] == "/docs"


@pytest.mark.parametrize("path", ["/docs", "/assets/../app.py", "/assets/%2e%2e/app.py"])
async def test_only_pages_are_served(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert "make_app" not in answer.text
