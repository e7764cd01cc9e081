"""How an attempt ends: done, answered, tried again later, or given up."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from redis.exceptions import ResponseError

from bxmesh.server import telemetry
from bxmesh.server.errors import MeshError, internal
from bxmesh.server.streams.connection import CONNECTION_ERRORS, is_missing_group
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.keys import GROUP
from bxmesh.server.streams.mailbox_scripts import ACKNOWLEDGE
from bxmesh.server.streams.metrics import WorkerMetrics
from bxmesh.server.streams.queue import WorkQueue
from bxmesh.server.streams.scripts import BURY, FINISH, RETRY, Script
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

# Errors that another try will not change: the input is at fault, or the caller.
FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Redis closes the connection of a listener that has 8 MiB before it, so what is larger is only
# announced.
_MOST_EVENT_BYTES = 128 << 10
_MOST_REFUSALS = 20
_MOST_REASON = 64
_PAUSE_SECONDS = 0.2
_MOST_DOUBLINGS = 30

OnEnd = Callable[[HeldEntry, str, MeshError | None], None]
"""Told of each attempt that has ended: how, as a field of WorkerCounters, and with what error."""


class Settlement:
    """Settles what one worker holds; without the lease, and after its item's end, it changes
    nothing."""

    def __init__(
        self,
        queue: WorkQueue,
        worker_id: str,
        metrics: WorkerMetrics,
        expect_retry: Callable[[float], None],
    ) -> None:
        self._queue = queue
        self._worker_id = worker_id
        self._metrics = metrics
        self._expect_retry = expect_retry
        self.on_end: OnEnd | None = None

    async def settle(
        self, held: HeldEntry, result: AnyMessage | None, error: MeshError | None
    ) -> None:
        """Ends an attempt with its result, or by what its error says."""
        if error is None:
            await self.finish(held, "done", result, None)
        elif error.code is grpc.StatusCode.CANCELLED:
            await self.finish(held, "cancelled", None, error)
        elif error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            await self.finish(held, "expired", None, error)
        elif error.code in FINAL and held.item.reply_to:
            # Whoever waits gets the error as the answer; a dead letter would tell nobody more.
            await self.finish(held, "answered_with_error", None, error)
        elif error.code in FINAL or held.attempt >= held.item.max_attempts:
            await self.bury(held, error)
        else:
            await self.retry(held, error)

    async def bury(self, held: HeldEntry, error: MeshError) -> bool:
        """Makes it a dead letter; False when the lease was lost."""
        letter = work_pb2.DeadLetter(
            entry=held.data,
            attempts=min(held.attempt, max(held.item.max_attempts, 1)),
            origin_stream=held.stream,
            origin_entry_id=held.entry_id.decode(),
            worker_id=self._worker_id,
            trace_context=_carrier() or held.entry.last_trace_context or held.item.trace_context,
        )
        letter.error.CopyFrom(error.to_status())
        letter.last_time.GetCurrentTime()
        letter.first_time.CopyFrom(
            held.entry.first_attempt_time
            if held.entry.HasField("first_attempt_time")
            else letter.last_time
        )
        return await self._end(
            BURY,
            held,
            "buried",
            self._outcome(held, error),
            [self._queue.keys.dead, self._queue.keys.journal],
            [
                letter.SerializeToString(),
                self._queue.options.max_dead_letters,
                int(self._queue.options.dead_letter_lifetime * 1000),
                letter_facts(held.item, letter.attempts, error),
            ],
            error,
        )

    async def acknowledge(
        self, held: HeldEntry, result: AnyMessage | None, *, history: int, history_seconds: float
    ) -> bool:
        """Ends a message in a mailbox, which keeps it in its history; False when the lease was lost.

        Without a result whoever waits for an answer goes on waiting.
        """
        keys = self._queue.keys
        agent_id = keys.agent_of(held.stream)
        outcome = self._outcome(held, None)
        if result is not None:
            outcome.result.CopyFrom(result)
        return await self._end(
            ACKNOWLEDGE,
            held,
            "done",
            outcome if result is not None or not held.item.reply_to else None,
            [keys.history(agent_id), keys.figures(agent_id)],
            [history, int(history_seconds * 1000)],
        )

    async def finish(
        self, held: HeldEntry, end: str, result: AnyMessage | None, error: MeshError | None
    ) -> bool:
        """Ends an item with its result or error; False when the lease was lost."""
        outcome = self._outcome(held, error)
        if result is not None:
            outcome.result.CopyFrom(result)
        return await self._end(FINISH, held, end, outcome, [], [], error)

    async def retry(
        self, held: HeldEntry, error: MeshError, *, delay: float | None = None, counted: bool = True
    ) -> bool:
        """Lets it be tried again after a delay in seconds, by default a random, growing one.

        Uncounted, it is as if it had not been tried. False when the lease was lost.
        """
        entry = work_pb2.WorkEntry()
        entry.CopyFrom(held.entry)
        entry.attempts = held.attempt if counted else held.attempt - 1
        if not entry.HasField("first_attempt_time"):
            entry.first_attempt_time.GetCurrentTime()
        entry.last_error.CopyFrom(error.to_status())
        entry.last_trace_context.clear()
        entry.last_trace_context.update(_carrier())
        options, keys = self._queue.options, self._queue.keys
        doublings = min(held.attempt - 1, _MOST_DOUBLINGS)
        most = min(options.retry_cap, options.retry_base * 2**doublings)
        if delay is None:
            delay = min(options.retry_cap, max(random.uniform(0, most), error.retry_after or 0.0))
        settled = await self._commit(
            RETRY,
            held,
            "retried",
            [held.stream, keys.outcome(held.item.item_id), keys.delayed],
            [entry.SerializeToString(), int(delay * 1000), keys.home(held.stream)],
            error,
        )
        self._expect_retry(delay)
        return settled

    def _outcome(self, held: HeldEntry, error: MeshError | None) -> work_pb2.WorkOutcome:
        outcome = work_pb2.WorkOutcome(
            item_id=held.item.item_id, attempts=held.attempt, worker_id=self._worker_id
        )
        if error is not None:
            outcome.status.CopyFrom(error.to_status())
        return outcome

    async def _end(
        self,
        script: Script,
        held: HeldEntry,
        end: str,
        outcome: work_pb2.WorkOutcome | None,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
        error: MeshError | None = None,
    ) -> bool:
        item, names = held.item, self._queue.keys
        # What could not be read has no name under which anybody would look.
        outcome_key = names.outcome(item.item_id or f"unreadable:{held.entry_id.decode()}")
        data, event, lifetime, reply_to = b"", b"", 0, ""
        if outcome is not None and (item.reply_to or item.request_id):
            data = outcome.SerializeToString()
            lifetime = int(self._queue.options.outcome_lifetime * 1000)
        if outcome is not None and item.reply_to:
            reply_to = item.reply_to
            told = outcome if len(data) <= _MOST_EVENT_BYTES else None
            event = work_pb2.WorkEvent(item_id=item.item_id, outcome=told).SerializeToString()
        return await self._commit(
            script,
            held,
            end,
            [
                held.stream,
                outcome_key,
                names.request(item.request_id) if item.request_id else outcome_key,
                *keys,
            ],
            [data, lifetime, event, reply_to, *arguments],
            error,
        )

    async def _commit(
        self,
        script: Script,
        held: HeldEntry,
        end: str,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
        error: MeshError | None,
    ) -> bool:
        """Settles an entry, however long Redis is away; False when the lease was lost.

        When Redis keeps refusing, the entry is left to its lease, and to another attempt.
        """
        refusals = 0
        while refusals < _MOST_REFUSALS:
            try:
                settled = await self._queue.scripts.call(
                    script, keys, [GROUP, self._worker_id, held.entry_id, *arguments]
                )
            except CONNECTION_ERRORS:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except ResponseError as refusal:
                if not is_missing_group(refusal):
                    refusals += 1
                    _log.warning("Redis refuses to settle %s: %s", held.item.item_id, refusal)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                settled = 0
            # What had ended before its settlement was cancelled.
            ended = ("lost_leases", end, "cancelled")[settled]
            self._metrics.count(ended)
            if self.on_end is not None:
                self.on_end(held, ended, error)
            return bool(settled)
        return False


def letter_facts(item: work_pb2.WorkItem, attempts: int, error: MeshError) -> str:
    """What the journal tells of a dead letter."""
    return json.dumps(
        {
            "item_id": item.item_id,
            "kind": item.kind,
            "attempts": attempts,
            "code": error.code.name,
            "reason": error.reason[:_MOST_REASON],
        }
    )


def worker_lost(held: HeldEntry) -> MeshError:
    """The error of work whose workers vanish."""
    count = held.attempt - 1 - held.entry.attempts
    message = f"Workers vanished {count} times while they were at it."
    return internal(message, reason="WORKER_LOST")


def _carrier() -> dict[str, str]:
    carrier: dict[str, str] = {}
    telemetry.inject(carrier)
    return carrier
