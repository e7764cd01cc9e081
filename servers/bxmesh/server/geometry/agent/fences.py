"""What a worker tells of those who try its fences, and what the policy lets it import besides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from bxmesh.security.v1.violation_pb2 import SEVERITY_HIGH, VIOLATION_KIND_MODULE
from bxmesh.server.geometry.agent.capabilities import CAPABILITIES
from bxmesh.server.sandbox import ModuleFence
from bxmesh.server.security.events import SecurityEvents, ViolationEvent
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.outpost import outpost
from bxmesh.server.security.policies import Policies
from bxmesh.server.security.recorder import tell_forged_entry
from bxmesh.server.settings import Settings

__all__ = ["fenced"]


@asynccontextmanager
async def fenced(settings: Settings, redis: Redis, key: MeshKey) -> AsyncIterator[None]:
    """Has a worker's fences told of and kept to within a block; the module fence stays for good."""
    async with outpost(redis, key) as (policies, recorder):
        settings.seals.on_forged = partial(tell_forged_entry, recorder)
        if settings.sandbox != "off":
            loop = asyncio.get_running_loop()

            def told(what: str) -> None:
                # It comes from whatever thread tried.
                loop.call_soon_threadsafe(_tell, recorder, what)

            fence = ModuleFence(told)
            _read(fence, policies)
            policies.on_change(partial(_read, fence, policies))
            fence.close()
        yield


def _tell(events: SecurityEvents, what: str) -> None:
    events.violation(
        ViolationEvent(
            VIOLATION_KIND_MODULE,
            SEVERITY_HIGH,
            rule="MODULE_REFUSED",
            message=f"A worker tried what it may not: {what}.",
            action=CAPABILITIES[0],
            resource=what,
        )
    )


def _read(fence: ModuleFence, policies: Policies) -> None:
    fence.extra = frozenset(
        module
        for whitelist in policies.policy.module_whitelists
        if not whitelist.capability
        or any(
            f"{capability}.".startswith(f"{whitelist.capability}.") for capability in CAPABILITIES
        )
        for module in whitelist.modules
    )
