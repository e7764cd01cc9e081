from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.agent.mesh import Mesh, agents


@pytest.fixture
async def mesh(redis: Redis, shared_valkey: str) -> AsyncIterator[Mesh]:
    async with agents(shared_valkey, delivery_lease=5) as running:
        yield running
