"""Secrets are planted, everything is done with them, and everything written is searched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import BxmeshError
from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.server.settings import Settings
from tests.processes import until

_PASSWORD = "canary-redis-password"


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    with TemporaryDirectory(prefix="bx-") as name:
        yield Path(name)


async def test_no_secret_is_written_anywhere(folder: Path) -> None:
    state, log = folder / "state", folder / "log"
    environment = {
        **os.environ,
        "BXMESH_STATE_DIR": str(state),
        "BXMESH_TRACE": str(folder / "traces"),
        "BXMESH_ACTIVITY_LOG": str(folder / "activity"),
        "GRPC_VERBOSITY": "INFO",
    }
    environment.pop("BXMESH_API_KEY", None)
    server = _served(log, environment)
    try:
        await until(lambda: (state / "server.json").exists(), 60)
        said, secrets, lines = await _use_everything(state)
        lines += _command_lines(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, 60)
    secrets += [(state / name).read_text().strip() for name in ("admin.key", "mesh.key")]
    own = {state / "admin.key", state / "mesh.key"}
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any("appendonly" in str(path) for path in written)
    assert written[log]
    assert (folder / "traces").stat().st_size > 0
    for secret in secrets:
        # Its random part, wherever it is cut.
        core = secret[-24:]
        for path, content in written.items():
            assert path in own or core.encode() not in content, (path, secret[:12])
        for text in (*said, *lines):
            assert core not in text, secret[:12]


def _served(log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bxmesh.server.cli", "serve", "--workers", "1"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"], stdout=output, stderr=output, env=environment
        )


async def _use_everything(state: Path) -> tuple[list[str], list[str], list[str]]:
    """Makes and uses credentials in good and bad ways; returns what was said, and the secrets."""
    said: list[str] = []
    async with AsyncMesh(state_dir=state) as admin:
        await admin.security.call(
            identity_pb2.CreateIdentityRequest(
                identity=identity_pb2.Identity(identity_id="alice", roles=["reader"])
            )
        )
        key = await admin.security.call(
            credential_pb2.CreateApiKeyRequest(identity_id="alice", display_name="canary")
        )
        rotated = await admin.security.call(
            credential_pb2.RotateApiKeyRequest(key_id=key.api_key.key_id)
        )
        token = await admin.security.call(credential_pb2.IssueTokenRequest())
        said += [repr(admin), repr(admin._connection), repr(admin._connection.endpoint)]
        secrets = [key.secret, rotated.secret, token.token]
        for secret in (*secrets, key.secret[:-1] + "x", token.token[:-2] + "xx", "canary" * 600):
            async with AsyncMesh(admin.address, api_key=secret, retries=0) as mesh:
                said.append(repr(mesh))
                try:
                    await mesh.agents()
                    await mesh.security.call(identity_pb2.ListIdentitiesRequest())
                except BxmeshError as error:
                    said += [str(error), repr(error), str(error.metadata)]
        await admin.security.call(credential_pb2.RevokeApiKeyRequest(key_id=rotated.api_key.key_id))
        async with AsyncMesh(admin.address, api_key=rotated.secret, retries=0) as mesh:
            with pytest.raises(BxmeshError) as raised:
                await mesh.agents()
            said.append(str(raised.value))
        try:
            await admin._connection.agent.GetTask(
                identity_pb2.GetIdentityRequest(), metadata=(("x-api-key", key.secret),)
            )
        except grpc.aio.AioRpcError as error:
            said += [str(error), repr(error)]
        answer = await admin.security.call(credential_pb2.ListApiKeysRequest(identity_id="alice"))
        said.append(str(answer))
    return said, secrets, []


def _command_lines(pid: int) -> list[str]:
    """The command lines of a process and of all below it, as `ps` shows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if int(path.name) == pid or int(parents[1]) == pid:
            found.append(line)
    assert len(found) > 2
    return found


def test_settings_do_not_show_passwords(folder: Path) -> None:
    settings = Settings(state_dir=folder, redis_url=f"redis://:{_PASSWORD}@127.0.0.1:1/0")  # type: ignore[arg-type]
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert _PASSWORD not in text
