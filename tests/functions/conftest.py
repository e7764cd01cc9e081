"""A server for the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.functions.mesh import Caller, World
from tests.functions.mesh import world as run_world


@pytest.fixture
def options() -> dict[str, Any]:
    """Its settings, for tests to say otherwise."""
    return {}


@pytest.fixture
async def world(redis: Redis, shared_valkey: str, options: dict[str, Any]) -> AsyncIterator[World]:
    """A running server on an empty Redis and an empty database."""
    async with run_world(shared_valkey, **options) as running:
        yield running


@pytest.fixture
async def admin(world: World) -> Caller:
    """Who may do everything."""
    return world.admin
