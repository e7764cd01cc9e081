"""How much waits where in the whole mesh, cheaply enough to look once a minute."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2
from bxmesh.server.live_agent_scripts import KEYS
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.scripts import Script
from bxmesh.server.tasks import TaskStore
from bxmesh.server.tasks.keys import QUEUE_KEYS, ROOT

__all__ = ["Depths"]

_PAGE = 250
_STATES = tuple(
    (f"{state}:", task_pb2.TaskState.Name(state).removeprefix("TASK_STATE_").lower())
    for state in (
        task_pb2.TASK_STATE_PENDING,
        task_pb2.TASK_STATE_ASSIGNED,
        task_pb2.TASK_STATE_RUNNING,
    )
)

# KEYS: mailboxes; ARGV: root, cursor, about so many; returns {cursor, items in these mailboxes}.
_MAILBOXES = Script(
    """
local page, items = redis.call('SSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3]), 0
for _, agent in ipairs(page[2]) do
  for priority = 1, 4 do
    items = items + redis.call('XLEN', ARGV[1] .. ':inbox:' .. agent .. ':' .. priority)
  end
end
return {page[1], items}
"""
)


class Depths:
    """Looks at the mailboxes, the tasks and the queues of work."""

    def __init__(self, redis: Redis, queues: Sequence[WorkQueue]) -> None:
        self._redis = redis
        self._queues = queues
        self._scripts = ScriptBatcher(redis)
        self._tasks = TaskStore(redis)

    async def look(self) -> dict[str, float]:
        """Figures by name; raises MeshError UNAVAILABLE without Redis."""
        with redis_errors():
            found: dict[str, float] = {
                "agents.live": await self._redis.zcard(KEYS[0]),
                "mailboxes.items": await self._mailboxes(),
                "mailboxes.delayed": await self._redis.zcard(QUEUE_KEYS.delayed),
                "mailboxes.dead_letters": await self._redis.xlen(QUEUE_KEYS.dead),
            }
        counts = (await self._tasks.figures())[0]
        for prefix, name in _STATES:
            found[f"tasks.{name}"] = sum(
                count for key, count in counts.items() if key.startswith(prefix)
            )
        for queue in self._queues:
            stats, name = await queue.stats(), queue.options.name
            found |= {
                f"{name}.waiting": stats.waiting,
                f"{name}.pending": stats.pending,
                f"{name}.delayed": stats.delayed,
                f"{name}.dead_letters": stats.dead,
                f"{name}.oldest_age": round(stats.oldest_age, 3),
            }
        return found

    async def _mailboxes(self) -> int:
        cursor, items, more = "0", 0, True
        while more:
            found, here = await self._scripts.call(
                _MAILBOXES, [QUEUE_KEYS.mailboxes], [ROOT, cursor, _PAGE]
            )
            cursor, items = found.decode(), items + int(here)
            more = cursor != "0"
        return items
