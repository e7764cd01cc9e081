"""The gateway does what its document says, as schemathesis finds by trying."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.http.api import OPERATIONS
from tests.http.gateways import gateway, http_client
from tests.http.keys import admin_key
from tests.mesh.conftest import start_mesh, wait_until_it_serves

_ROOT = Path(__file__).parents[2]
_EXAMPLES = 15
_SEED = 1
_CONFIGURATION = """
[[operations]]
include-name = "POST /stream/{id}"
parameters = { id = "HELD" }

# What fits the document need not be the token of a page, an event that was, a file with atoms, or a
# quorum of those who take part.
[[operations]]
include-name = [
    "GET /admin/export",
    "GET /conversations/recent",
    "POST /chat",
    "POST /conversations/search",
    "POST /geometry/report",
    "POST /stream/new",
    "POST /stream/{id}",
]
checks.positive_data_acceptance.enabled = false
"""


# With how many operations each has.
_PATHS = {
    "^/chat$": 1,
    "^/stream/": 2,
    "^/(conversations|statistics|admin|health)": 8,
    "^/geometry/": 1,
}


@pytest.fixture(scope="module")
def large_mesh() -> Iterator[EmbeddedMesh]:
    """A mesh with room for all conversations that are begun."""
    with start_mesh(1, BXMESH_MAX_OPEN_CONVERSATIONS="100000") as mesh:
        wait_until_it_serves(mesh)
        yield mesh


def test_all_operations_are_tried() -> None:
    for operation in OPERATIONS:
        assert any(re.match(path, operation.path) for path in _PATHS), operation.path


@pytest.mark.parametrize("path", _PATHS)
async def test_schemathesis_finds_nothing(
    large_mesh: EmbeddedMesh, tmp_path: Path, path: str
) -> None:
    async with gateway(large_mesh, request_timeout=20.0, max_refusals=100_000) as url:
        async with http_client(url, admin_key(large_mesh)) as http:
            begun = await http.post("/chat", json={"message": "Which?", "budget": {"seconds": 0.1}})
        held = begun.json()["conversation_id"]
        (tmp_path / "schemathesis.toml").write_text(_CONFIGURATION.replace("HELD", held))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--include-path-regex", path),
            *("--header", f"Authorization: Bearer {admin_key(large_mesh)}"),
            *("--phases", "coverage,fuzzing"),
            *("--max-examples", f"{_EXAMPLES}", "--seed", f"{_SEED}"),
            # Where the machine is busy, making examples takes its time.
            *("--suppress-health-check", "all", "--request-timeout", "60"),
            "--continue-on-failure",
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(_ROOT),
                "SCHEMATHESIS_HOOKS": "tests.http.schemathesis_hooks",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert f"Tested: {_PATHS[path]}\n" in output.decode()
