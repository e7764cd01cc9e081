"""A model's report in one request."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes
from tests.http.gateways import gateway, http_client, problem
from tests.http.keys import admin_key, make_key


async def test_a_file_as_the_body(http: httpx.AsyncClient, agents: AsyncMesh) -> None:
    answer = await http.post("/geometry/report", content=wheel_bytes(PDB_1YJP))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    model = await agents.create_model(wheel_bytes(PDB_1YJP))
    expected = await agents.validate(model)
    assert told["model_id"] == model.model_id
    assert told["summary"]["atoms"] == model.summary.atoms > 0
    assert told["validation"]["deviations"]["bond"]["rms"] == expected.deviations["bond"].rms
    assert len(told["validation"]["ramachandran"]) == len(expected.ramachandran) > 0
    assert told["data"] is None
    assert told["trace_id"] == answer.headers["bxmesh-trace-id"]
    short = await http.post(
        "/geometry/report", params={"per_residue": "false"}, content=wheel_bytes(PDB_1YJP)
    )
    assert short.json()["validation"]["ramachandran"] == []


async def test_a_form_with_reflections(http: httpx.AsyncClient) -> None:
    files = {
        "model": ("7n2l.pdb", wheel_bytes(PDB_7N2L)),
        "reflections": ("7n2l.mtz", wheel_bytes(MTZ_7N2L)),
    }
    answer = await http.post("/geometry/report", files=files)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert 0 < told["validation"]["xray"]["r_work"] < 1
    assert told["data"]["reflections"] > 0
    assert told["summary"]["reflections"]["data_labels"]


async def test_what_is_no_model(http: httpx.AsyncClient) -> None:
    answer = await http.post("/geometry/report", content=b"a poem")
    assert problem(answer, 400, answer.json()["reason"]).code == "INVALID_ARGUMENT"
    problem(await http.post("/geometry/report"), 400, "INVALID_ARGUMENT")
    nothing = await http.post("/geometry/report", files={"reflections": b"MTZ "})
    assert problem(nothing, 400, "INVALID_ARGUMENT").errors[0].field == "model"
    other = await http.post("/geometry/report", files={"model": b"x", "poem": b"y"})
    assert problem(other, 400, "INVALID_ARGUMENT").errors[0].field == "poem"
    broken = await http.post(
        "/geometry/report",
        content=b"no form",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    problem(broken, 400, "INVALID_ARGUMENT")
    unknown = await http.post("/geometry/report", params={"colour": "red"}, content=b"x")
    assert problem(unknown, 400, "INVALID_ARGUMENT").errors[0].field == "colour"


async def test_who_may_not_compute_sends_no_file(url: str, http_mesh: EmbeddedMesh) -> None:
    key = await make_key(http_mesh, "http-no-files", roles=["reader"])
    async with http_client(url, key) as reader:
        answer = await reader.post("/geometry/report", content=wheel_bytes(PDB_1YJP))
    problem(answer, 403, "PERMISSION_MISSING")


async def test_files_are_bounded(http_mesh: EmbeddedMesh) -> None:
    async with (
        gateway(http_mesh, max_upload_bytes=1000) as url,
        http_client(url, admin_key(http_mesh)) as http,
    ):
        problem(await http.post("/geometry/report", content=b"x" * 1001), 413, "BODY_TOO_LARGE")

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 500

        answer = await http.post("/geometry/report", content=unannounced())
        problem(answer, 413, "BODY_TOO_LARGE")
        assert answer.headers["connection"] == "close"
