"""The deliveries that an agent has at work, and the answers that the mesh has not settled yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bxmesh.agent.v1 import delivery_pb2 as pb
from bxmesh.client.agents.message_work import MessageWork
from bxmesh.client.agents.stats import AgentStats
from bxmesh.client.agents.task_work import TaskWork
from bxmesh.client.agents.verdicts import Verdict
from bxmesh.client.errors import Unavailable, from_status

__all__ = ["Inbox"]

_log = logging.getLogger(__name__)

_MOST_DIRECT = 1000


@dataclass(eq=False)
class _Work:
    """One delivery at work."""

    delivery: pb.Delivery
    task: asyncio.Task[None] | None = None
    ending: Literal["cancelled", "lost", "stopped"] | None = None
    why: BaseException | None = field(default=None)


class Inbox:
    """Runs what is delivered, so many at once, and answers it."""

    def __init__(
        self,
        messages: MessageWork,
        tasks: TaskWork,
        stats: AgentStats,
        concurrency: int,
        on_change: Callable[[], None],
    ) -> None:
        self.post: Callable[[pb.ConnectRequest], None] = lambda request: None
        """Sends something to the mesh, when there is a connection."""
        self._messages = messages
        self._tasks = tasks
        self._stats = stats
        self._slots = asyncio.Semaphore(concurrency)
        self._on_change = on_change
        self._works: dict[str, _Work] = {}
        self._direct: set[_Work] = set()
        self._unsettled: dict[str, pb.Answer] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def at_work(self) -> int:
        """Deliveries under leases that are at work."""
        return len(self._works)

    @property
    def held(self) -> list[str]:
        """The deliveries that must not be delivered again after a lost connection."""
        return [*self._works, *self._unsettled]

    @property
    def unsettled(self) -> list[pb.Answer]:
        """The answers of which the mesh has not said that they count."""
        return list(self._unsettled.values())

    async def quiet(self) -> None:
        """Waits until nothing is at work and every answer is settled."""
        await self._quiet.wait()

    def take(self, delivery: pb.Delivery) -> None:
        """Begins with a delivery. A direct message is dropped while too many of them wait."""
        if self._known(delivery.delivery_id):
            return
        self._stats.received += 1
        work = _Work(delivery)
        if delivery.delivery_id:
            self._works[delivery.delivery_id] = work
        elif len(self._direct) >= _MOST_DIRECT:
            self._stats.overflowed += 1
            return
        else:
            self._direct.add(work)
        self._changed()
        work.task = asyncio.create_task(self._run(work))

    def _known(self, delivery_id: str) -> bool:
        """Whether a delivery is at work or answered already: it came twice, and credit goes back."""
        if delivery_id in self._unsettled:
            self.post(pb.ConnectRequest(answer=self._unsettled[delivery_id]))
        elif delivery_id not in self._works:
            return False
        self.post(pb.ConnectRequest(credit=pb.Credit(deliveries=1)))
        return True

    def extend(self) -> None:
        """Asks for more time for what is at work."""
        if self._works:
            self.post(pb.ConnectRequest(extend=pb.Extend(delivery_ids=self._works)))

    def strip_answers(self) -> bool:
        """Takes out of the answers what a mesh could refuse; returns whether there was anything.

        Otherwise an answer that the mesh refuses would be sent again and again.
        """
        stripped = False
        for delivery_id, answer in self._unsettled.items():
            if answer.HasField("reply") or answer.error.details:
                _log.error("the answer to %s was refused: %s", delivery_id, answer)
                answer.ClearField("reply")
                answer.error.ClearField("details")
                stripped = True
        return stripped

    def settled(self, settled: pb.Settled) -> None:
        """Notes that an answer counts, or that a delivery is another's by now."""
        if settled.HasField("lease_expire_time"):
            return  # an extension; an answer may be on its way still
        answer = self._unsettled.pop(settled.delivery_id, None)
        if answer is None and settled.status.code:
            self._end(settled.delivery_id, "lost", from_status(settled.status))
        self._changed()

    def lost(self, delivery_ids: list[str]) -> None:
        """Stops working on what was lost to others."""
        for delivery_id in delivery_ids:
            self._unsettled.pop(delivery_id, None)
            self._end(delivery_id, "lost")
        self._changed()

    def cancel(self, cancel: pb.CancelDelivery) -> None:
        """Stops working on what nobody wants any more."""
        self._end(cancel.delivery_id, "cancelled", from_status(cancel.reason))

    def abandon(self) -> None:
        """Stops all work; what is under a lease comes again, elsewhere."""
        stopped = Unavailable("the agent has stopped", reason="AGENT_STOPPED")
        for delivery_id in list(self._works):
            self._end(delivery_id, "stopped", stopped)
        for work in list(self._direct):
            self._cancel(work, "stopped", stopped)

    def _end(
        self,
        delivery_id: str,
        ending: Literal["cancelled", "lost", "stopped"],
        why: BaseException | None = None,
    ) -> None:
        if (work := self._works.get(delivery_id)) is not None:
            self._cancel(work, ending, why)

    def _cancel(
        self,
        work: _Work,
        ending: Literal["cancelled", "lost", "stopped"],
        why: BaseException | None,
    ) -> None:
        if work.ending is None and work.task is not None:
            work.ending, work.why = ending, why
            work.task.cancel()

    async def _run(self, work: _Work) -> None:
        verdict: Verdict | None = None
        try:
            async with self._slots:
                verdict = await self._process(work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if work.ending is None or task is None:
                raise
            task.uncancel()
            verdict = await self._ended(work)
        except Exception as error:
            _log.exception("a delivery could not be handled")
            verdict = Verdict.retry(error)
        finally:
            self._finish(work, verdict)

    async def _process(self, work: _Work) -> Verdict:
        delivery = work.delivery
        if not delivery.HasField("task"):
            return await self._messages.process(delivery)
        return await self._tasks.process(
            delivery, lambda: self._end(delivery.delivery_id, "cancelled")
        )

    async def _ended(self, work: _Work) -> Verdict | None:
        """Returns the answer to a delivery whose handler was cancelled; None for no answer."""
        if work.ending == "stopped" and work.why is not None:
            return Verdict.retry(work.why, 0.0)
        self._stats.cancelled += 1
        if work.ending == "cancelled" and work.delivery.HasField("task"):
            await self._tasks.cancelled(work.delivery)
            return Verdict.ack()
        return None

    def _finish(self, work: _Work, verdict: Verdict | None) -> None:
        delivery_id = work.delivery.delivery_id
        self._count(work, verdict)
        if not delivery_id:
            self._direct.discard(work)
        else:
            self._works.pop(delivery_id, None)
            if verdict is not None:
                answer = self._unsettled[delivery_id] = verdict.answer(delivery_id)
                self.post(pb.ConnectRequest(answer=answer))
            self.post(pb.ConnectRequest(credit=pb.Credit(deliveries=1)))
        self._changed()

    def _count(self, work: _Work, verdict: Verdict | None) -> None:
        if verdict is None or work.ending == "cancelled":
            return
        match verdict.verdict:
            case pb.VERDICT_ACK:
                self._stats.handled += 1
            case pb.VERDICT_RETRY:
                self._stats.retried += 1
            case pb.VERDICT_DROP:
                self._stats.dropped += 1

    def _changed(self) -> None:
        self._stats.in_flight = len(self._works) + len(self._direct)
        if self._works or self._direct or self._unsettled:
            self._quiet.clear()
        else:
            self._quiet.set()
        self._on_change()
