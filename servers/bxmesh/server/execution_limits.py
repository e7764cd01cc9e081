"""The time and memory that one piece of work may take, kept to from outside of its process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from bxmesh.security.v1.policy_pb2 import ExecutionLimit
from bxmesh.security.v1.violation_pb2 import SEVERITY_HIGH, VIOLATION_KIND_EXECUTION_LIMIT
from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.occupation import Occupation, Work, occupation_path
from bxmesh.server.security.events import SecurityEvents, ViolationEvent
from bxmesh.server.security.policy_source import PolicySource
from bxmesh.server.streams.ending import Background

__all__ = ["EXECUTION_LIMIT", "ExecutionLimits", "limit_of"]

EXECUTION_LIMIT = "EXECUTION_LIMIT"
"""The reason of work that was stopped."""

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Workers(Protocol):
    """The processes that are looked at."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Those that run, by worker id."""

    def kill(self, worker_id: str) -> None:
        """Ends one at once."""


class ExecutionLimits(Background):
    """Looks at the workers of this server four times a second, and kills those over a limit.

    `stopped` is told first, so that the work is tried again, or given up, for this reason.
    """

    def __init__(
        self,
        workers: Workers,
        run_dir: Path,
        policies: PolicySource,
        events: SecurityEvents,
        stopped: Callable[[str, Work, MeshError], Awaitable[None]],
    ) -> None:
        self._workers = workers
        self._run_dir = run_dir
        self._policies = policies
        self._events = events
        self._stopped = stopped

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._policies.policy.execution_limits:
                continue
            for worker_id, pid in self._workers.pids.items():
                try:
                    await self._look(worker_id, pid)
                except Exception:
                    _log.exception("whether %s keeps to its limits is not known", worker_id)

    async def _look(self, worker_id: str, pid: int) -> None:
        path = occupation_path(self._run_dir, worker_id)
        work = Occupation.read(path)
        limit = work and limit_of(self._policies.policy.execution_limits, work.capability)
        if work is None or limit is None:
            return
        for broken in _broken(work, limit, pid):
            # It may have ended meanwhile, and the process be at another's work.
            if Occupation.read(path) == work:
                await self._stop(worker_id, work, broken)
            return

    async def _stop(self, worker_id: str, work: Work, broken: str) -> None:
        error = resource_exhausted(
            f"{work.capability} took {broken} that the policy allows. Ask for less at a time, or "
            "have execution_limits raised.",
            retry_after=1.0,
            reason=EXECUTION_LIMIT,
            subject=work.capability,
        )
        _log.error("worker %s is stopped: %s", worker_id, error.message)
        self._events.violation(
            ViolationEvent(
                VIOLATION_KIND_EXECUTION_LIMIT,
                SEVERITY_HIGH,
                rule=EXECUTION_LIMIT,
                message=error.message,
                identity_id=work.identity_id,
                action=work.capability,
                resource=f"worker/{worker_id}",
            )
        )
        try:
            await self._stopped(worker_id, work, error)
        except Exception as problem:
            _log.warning("why it is stopped will not be told: %s", problem)
        self._workers.kill(worker_id)


def limit_of(limits: Iterable[ExecutionLimit], capability: str) -> ExecutionLimit | None:
    """Returns the most special of the limits that a capability has; None without one."""
    fitting = [
        limit
        for limit in limits
        if not limit.capability or f"{capability}.".startswith(f"{limit.capability}.")
    ]
    return max(fitting, key=lambda limit: len(limit.capability), default=None)


def _broken(work: Work, limit: ExecutionLimit, pid: int) -> Iterator[str]:
    """Says which limits are broken: more than …"""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return
    if limit.HasField("max_duration"):
        most = limit.max_duration.ToNanoseconds() / 1e9
        if time.monotonic() - work.began > most:
            yield f"more than the {most:g} s"
    if limit.HasField("max_cpu"):
        most = limit.max_cpu.ToNanoseconds() / 1e9
        if (int(fields[11]) + int(fields[12])) / _TICKS - work.cpu_before > most:
            yield f"more than the {most:g} s of CPU time"
    if limit.max_memory_bytes and int(fields[21]) * _PAGE_BYTES > limit.max_memory_bytes:
        yield f"more than the {limit.max_memory_bytes / (1 << 20):.0f} MiB of memory"
