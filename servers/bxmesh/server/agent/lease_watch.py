"""Ends the connections of agents whose leases in the registry are over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.errors import failed_precondition
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.live_agents import RevisionCompactedError
from bxmesh.server.streams.connection import REDIS_ERRORS

if TYPE_CHECKING:
    from bxmesh.server.agent.connection import Connection

__all__ = ["watch_leases"]

_log = logging.getLogger(__name__)

_GONE = frozenset({"deregistered", "expired", "replaced"})
_PAGE = 256
_BLOCK_MS = 5_000
_PAUSE_SECONDS = 1.0
# Changes of the registry gather for so long before they are looked at, however many come.
_GATHER_SECONDS = 0.25


async def watch_leases(mesh: AgentMesh) -> None:
    """Follows the registry until it is cancelled."""
    revision = 0
    known = False
    while True:
        try:
            if not known:
                revision, _ = await mesh.agents.expire()
                await _check_all(mesh, mesh.connections)
                known = True
            await mesh.redis.xread({EVENTS: f"{revision}-0"}, count=1, block=_BLOCK_MS)
            changes, revision = await mesh.agents.changes(revision, _PAGE)
            gone = {c.agent.agent_id for c in changes if c.kind in _GONE}
            await _check_all(mesh, (each for each in mesh.connections if each.agent_id in gone))
            if len(changes) < _PAGE:
                await asyncio.sleep(_GATHER_SECONDS)
        except RevisionCompactedError:
            known = False
        except REDIS_ERRORS as error:
            _log.info("leases of connected agents are not watched: %s", error)
            known = False
            await asyncio.sleep(_PAUSE_SECONDS)
        except Exception:
            # What Redis holds may be anything.
            _log.exception("leases of connected agents are not watched")
            known = False
            await asyncio.sleep(_PAUSE_SECONDS)


async def _check_all(mesh: AgentMesh, connections: Iterable[Connection]) -> None:
    # At once: renewals gather, and one after the other would wait for that each time.
    await asyncio.gather(*(_check(mesh, connection) for connection in connections))


async def _check(mesh: AgentMesh, connection: Connection) -> None:
    if await mesh.agents.renew(connection.lease_id, lambda agent: False) is None:
        connection.end(
            failed_precondition(
                f"The lease of {connection.agent_id} is over: register, then connect.",
                reason="LEASE_LOST",
                subject=connection.agent_id,
            )
        )
