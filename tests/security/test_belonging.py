"""A Redis belongs to the mesh whose key has sealed what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from bxmesh.security.v1 import audit_pb2
from bxmesh.server.security.belonging import belong
from bxmesh.server.settings import Settings
from tests.security.mesh import ADMIN, serving


async def test_a_server_with_another_key_does_not_start(redis: Redis, tmp_path: Path) -> None:
    first, second = Settings(state_dir=tmp_path / "a"), Settings(state_dir=tmp_path / "b")
    await belong(redis, first)
    await belong(redis, first)
    with pytest.raises(OSError, match=r"mesh\.key"):
        await belong(redis, second)
    shared = Settings(state_dir=tmp_path / "c", mesh_key_file=first.mesh_key_path)
    await belong(redis, shared)


async def test_a_lost_key_is_no_dead_end(redis: Redis, tmp_path: Path) -> None:
    await belong(redis, Settings(state_dir=tmp_path / "a"))
    async with serving(redis, tmp_path / "a") as server:
        await server.identity("alice", "registry_read")
    await belong(redis, Settings(state_dir=tmp_path / "b", adopt_redis=True))
    async with serving(redis, tmp_path / "b") as server:
        assert list(server.guard.mesh.directory.identities()) == []
        await server.identity("alice", "registry_read")
        verdict = await server.security.VerifyAuditLog(
            audit_pb2.VerifyAuditLogRequest(), metadata=ADMIN
        )
        assert (verdict.intact, verdict.entries_checked) == (True, 2)
    with pytest.raises(OSError, match="adopt-redis"):
        await belong(redis, Settings(state_dir=tmp_path / "a"))
