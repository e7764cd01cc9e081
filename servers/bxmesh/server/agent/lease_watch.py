"""Ends the connections of agents whose leases in the registry are over."""

from __future__ import annotations

import asyncio
import logging

from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.errors import failed_precondition
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.live_agents import RevisionCompactedError
from bxmesh.server.streams.connection import REDIS_ERRORS

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
                await _check_all(mesh)
                known = True
            await mesh.redis.xread({EVENTS: f"{revision}-0"}, count=1, block=_BLOCK_MS)
            changes, revision = await mesh.agents.changes(revision, _PAGE)
            for agent_id in {c.agent.agent_id for c in changes if c.kind in _GONE}:
                await _check(mesh, agent_id)
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


async def _check_all(mesh: AgentMesh) -> None:
    for agent_id in {connection.agent_id for connection in mesh.connections}:
        await _check(mesh, agent_id)


async def _check(mesh: AgentMesh, agent_id: str) -> None:
    for connection in mesh.connections.of(agent_id):
        agent = await mesh.agents.renew(connection.lease_id, lambda agent: False)
        if agent is None:
            connection.end(
                failed_precondition(
                    f"The lease of {agent_id} is over: register, then connect.",
                    reason="LEASE_LOST",
                    subject=agent_id,
                )
            )
