"""One connection of an agent: deliveries out under leases, answers in."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from bxmesh.agent.v1 import delivery_pb2, message_pb2, task_pb2
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.agent.deliveries import (
    MessageTypes,
    delivery_id,
    delivery_of,
    direct_delivery,
    envelope_of,
    unhandled,
)
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.agent.replies import reply_to_delivery
from bxmesh.server.errors import (
    MeshError,
    deadline_exceeded,
    failed_precondition,
    internal,
    invalid_argument,
    unavailable,
)
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.handling import remaining_seconds
from bxmesh.server.streams.mailboxes import MESSAGE, TASK, topic
from bxmesh.server.streams.queue import cancelled
from bxmesh.server.streams.settlement import worker_lost
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

_Request = delivery_pb2.ConnectRequest
_Response = delivery_pb2.ConnectResponse
Send = Callable[[_Response], Awaitable[None]]

_MOST_TAKEN = 64
_MOST_CREDIT = 10_000
# Whoever holds more gets nothing further before it has answered some.
_MOST_HELD_BYTES = 64 << 20
_MOST_DIRECT = 256
_MOST_DIRECT_BYTES = 8 << 20
_PAUSE_SECONDS = 0.5
_LOOK_SECONDS = 60.0
# What nobody who is connected handles waits for somebody who does.
_UNHANDLED_SECONDS = (20.0, 40.0)
# What they handle, but take none of at the moment, sooner.
_NO_CREDIT_SECONDS = (1.0, 3.0)
# Answers under way; more are not read, so that whoever does not read how they were settled says no
# more.
_MOST_SETTLING = 256
_FAREWELL_SECONDS = 5.0
_FORBIDDEN = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class Connection:
    """One attached stream; `run` serves it to its end."""

    def __init__(
        self, mesh: AgentMesh, agent: Agent, hello: delivery_pb2.Hello, send: Send
    ) -> None:
        self.agent_id = agent.agent_id
        self.lease_id = hello.lease_id
        self.connection_id = hello.connection_id or uuid.uuid4().hex
        self._mesh = mesh
        self._mailboxes = mesh.mailboxes
        self._identity = agent.identity
        self._types = MessageTypes(tuple(hello.message_types))
        self._said_held = set(hello.held_delivery_ids)
        self._credit = hello.initial_credit
        self._moved = asyncio.Event()
        self._draining = False
        self._held: dict[str, HeldEntry] = {}
        self._held_bytes = 0
        self._direct: asyncio.Queue[delivery_pb2.Delivery] = asyncio.Queue(_MOST_DIRECT)
        self._direct_bytes = 0
        self._settling: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlement = self._mailboxes.settlement(self.connection_id)
        self._settlement.on_end = mesh.activity.settled
        self._send_unlocked = send
        self._sending = asyncio.Lock()

    def handles(self, message_type: str) -> bool:
        """Whether it takes messages of a type now."""
        return message_type in self._types and not self._draining

    @property
    def takes(self) -> bool:
        """Whether it has credit for a delivery, and holds no more than it may."""
        return self._credit > 0 and self._held_bytes < _MOST_HELD_BYTES

    def _hold(self, held: HeldEntry) -> None:
        self._release(delivery_id(held))
        self._held[delivery_id(held)] = held
        self._held_bytes += len(held.data)

    def _release(self, name: str) -> HeldEntry | None:
        held = self._held.pop(name, None)
        if held is not None:
            self._held_bytes -= len(held.data)
            self._moved.set()
        return held

    def end(self, error: MeshError) -> None:
        """Ends the stream with an error."""
        if not self._over.done():
            self._over.set_exception(error)

    async def run(self, requests: AsyncIterator[_Request]) -> None:
        """Serves the stream; returns when the agent has hung up or drained, raises MeshError."""
        for other in self._mesh.connections.of(self.agent_id):
            if other.connection_id == self.connection_id:
                # Its agent has given it up, or it would not attach anew.
                other.end(replaced(self.connection_id))
        gone = asyncio.get_running_loop().create_future()
        self._mesh.connections.expect(self, gone)
        tasks: list[asyncio.Future[None]] = [self._over]
        try:
            held = await self._mailboxes.attach(
                self.agent_id, self.connection_id, self.lease_id, self._mesh.bells.channel
            )
            self._mesh.connections.add(self)
            again = self._take_up(held)
            tasks += map(
                asyncio.ensure_future,
                (self._pump(again), self._send_direct(), self._read(requests)),
            )
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            self._mesh.connections.remove(self)
            self._over.cancel()
            farewell = asyncio.ensure_future(self._farewell(tasks))
            farewell.add_done_callback(lambda _: gone.set_result(None))
            await asyncio.shield(farewell)

    def _take_up(self, held: Iterable[HeldEntry]) -> list[HeldEntry]:
        """Keeps what the agent says it works on; returns what it must be handed again."""
        again = []
        for each in held:
            if delivery_id(each) in self._said_held:
                self._hold(each)
            else:
                again.append(each)
        return again

    async def _farewell(self, tasks: Iterable[asyncio.Future[None]]) -> None:
        await end_tasks(*tasks)  # type: ignore[arg-type]
        for task in tasks:
            # Why the stream ended is told already; what failed with it is not told as well.
            if not task.cancelled():
                task.exception()
        # What was read was answered: it counts, even if the agent is gone by now.
        if self._settling:
            await asyncio.wait(self._settling, timeout=_FAREWELL_SECONDS)
            await end_tasks(*self._settling)
        # Looked up only now: meanwhile the agent may have come back, even under the same name.
        staying = self._mesh.connections.staying(self.agent_id)
        if self.connection_id in staying:
            return
        with suppress(MeshError):
            await self._mailboxes.detach(
                self.agent_id, self.connection_id, self._mesh.bells.channel, last=not staying
            )

    async def _send(self, response: _Response) -> None:
        async with self._sending:
            await self._send_unlocked(response)

    # Out

    async def _pump(self, again: list[HeldEntry]) -> None:
        await self._send(
            _Response(
                welcome=delivery_pb2.Welcome(
                    connection_id=self.connection_id,
                    delivery_ttl_seconds=round(self._mailboxes.options.lease),
                    lost_delivery_ids=sorted(self._said_held - self._held.keys()),
                )
            )
        )
        for held in again:
            await self.deliver(held)
        async with self._mesh.bells.watch(topic(self.agent_id)) as bell:
            while not (self._draining and not self._held):
                if not self.takes or self._draining:
                    self._moved.clear()
                    await self._moved.wait()
                    continue
                bell.clear()
                self._moved.clear()
                most = min(self._credit, _MOST_TAKEN)
                try:
                    entries = await self._mailboxes.take(
                        self.agent_id, self.connection_id, most, self._mesh.bells.channel
                    )
                except MeshError as error:
                    _log.info("the mailbox of %s waits: %s", self.agent_id, error.message)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for held in entries:
                    await self.deliver(held)
                if len(entries) < most:
                    await self._wait_for(bell.wait(_LOOK_SECONDS))

    async def _wait_for(self, ringing: Awaitable[bool]) -> None:
        """Waits for news, or for the agent to drain."""
        waiting = [asyncio.ensure_future(ringing), asyncio.ensure_future(self._moved.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def deliver(self, held: HeldEntry) -> None:
        """Hands an entry over that this connection holds, or settles it when that is pointless."""
        content = await self._content(held)
        if content is not None:
            self._credit -= 1
            await self._hand(held, content)

    def take_over(self, held: HeldEntry, envelope: message_pb2.Envelope) -> None:
        """Delivers what another connection handed over, for credit that was taken already; nobody
        waits for an agent that reads slowly."""
        self._in_background(self._hand(held, envelope))

    async def _hand(self, held: HeldEntry, content: message_pb2.Envelope | task_pb2.Task) -> None:
        self._hold(held)
        if held.attempt > 1:
            with suppress(MeshError):
                await self._mailboxes.count(self.agent_id, "redelivered")
        if isinstance(content, message_pb2.Envelope):
            self._mesh.activity.delivered(content, self.connection_id, held.attempt)
        delivery = delivery_of(held, content, self._mailboxes.options.lease)
        await self._send(_Response(delivery=delivery))

    async def _content(self, held: HeldEntry) -> message_pb2.Envelope | task_pb2.Task | None:
        """What to hand over; None when the entry was settled otherwise."""
        while True:
            try:
                return await self._examined(held)
            except MeshError as error:
                # Redis is away, which is not the entry's fault.
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                _log.info("a delivery to %s waits: %s", self.agent_id, error.message)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _examined(self, held: HeldEntry) -> message_pb2.Envelope | task_pb2.Task | None:
        item = held.item
        remaining = remaining_seconds(item)
        try:
            if held.problem is not None:
                raise held.problem
            if held.attempt > item.max_attempts:
                raise worker_lost(held)
            if remaining is not None and remaining <= 0:
                await self._expire(held)
            elif item.kind == MESSAGE:
                return await self._message(held)
            elif item.kind == TASK:
                return await self._task(held)
            else:
                raise invalid_argument("kind", f"{item.kind!r} is nothing that agents get")
        except MeshError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                raise
            await self._bury(held, error)
        return None

    async def _message(self, held: HeldEntry) -> message_pb2.Envelope | None:
        envelope = envelope_of(held)
        if self.handles(envelope.message_type):
            return envelope
        other = self._mesh.connections.handler_of(self.agent_id, envelope.message_type)
        if other is None:
            delay = random.uniform(*_UNHANDLED_SECONDS)
            error = unhandled(envelope.message_type)
            await self._settlement.retry(held, error, delay=delay, counted=False)
        elif not other.takes:
            delay = random.uniform(*_NO_CREDIT_SECONDS)
            error = unhandled(envelope.message_type)
            await self._settlement.retry(held, error, delay=delay, counted=False)
        else:
            await self._hand_over(held, envelope, other)
        return None

    async def _hand_over(
        self, held: HeldEntry, envelope: message_pb2.Envelope, other: Connection
    ) -> None:
        other._credit -= 1
        handed = False
        try:
            handed = await self._mailboxes.hand_over(held, self.connection_id, other.connection_id)
        finally:
            if not handed:
                other._credit += 1
                other._moved.set()
        if handed:
            other.take_over(held, envelope)

    async def _task(self, held: HeldEntry) -> task_pb2.Task | None:
        delivery = work_pb2.TaskDelivery()
        try:
            held.item.payload.Unpack(delivery)
        except DecodeError as error:
            raise internal("The entry holds no task.", reason="UNREADABLE") from error
        task = await self._mesh.tasks.deliverable(delivery.task_id, delivery.attempt, self.agent_id)
        if task is None:
            # It was given to somebody else since, or has ended.
            await self._settlement.finish(held, "cancelled", None, cancelled())
        return task

    async def _expire(self, held: HeldEntry) -> None:
        error = deadline_exceeded(
            "The message expired before it was delivered.", reason="MESSAGE_EXPIRED"
        )
        await self._mailboxes.count(self.agent_id, "expired")
        await self._settlement.finish(held, "expired", None, error)

    def offer_direct(self, envelope: bytes) -> bool:
        """Takes a direct message in; False when it does not handle it, or reads too slowly."""
        delivery = direct_delivery(envelope)
        if delivery is None or not self.handles(delivery.envelope.message_type):
            return False
        if self._direct.full() or self._direct_bytes + len(envelope) > _MOST_DIRECT_BYTES:
            return False
        self._direct_bytes += len(envelope)
        self._direct.put_nowait(delivery)
        return True

    async def _send_direct(self) -> None:
        while True:
            delivery = await self._direct.get()
            self._direct_bytes -= delivery.envelope.ByteSize()
            self._mesh.activity.delivered(delivery.envelope, self.connection_id)
            await self._send(_Response(delivery=delivery))

    def cancel(self, item_id: str, reason: status_pb2.Status | None) -> None:
        """Asks the agent to stop working on an item, if it does."""
        for name, held in self._held.items():
            if held.item.item_id == item_id:
                self._in_background(self._withdraw(name, reason))
                return

    async def _withdraw(self, name: str, reason: status_pb2.Status | None) -> None:
        held = self._release(name)
        if held is None:
            return
        await self._settlement.finish(held, "cancelled", None, cancelled())
        await self._send(
            _Response(
                cancel=delivery_pb2.CancelDelivery(
                    delivery_id=name, reason=reason or cancelled().to_status()
                )
            )
        )

    # In

    async def _read(self, requests: AsyncIterator[_Request]) -> None:
        async for request in requests:
            match request.WhichOneof("request"):
                case "hello":
                    raise invalid_argument("hello", "comes only once.")
                case "credit":
                    self._credit = min(_MOST_CREDIT, self._credit + request.credit.deliveries)
                case "answer":
                    while len(self._settling) >= _MOST_SETTLING:
                        await asyncio.wait(self._settling, return_when=asyncio.FIRST_COMPLETED)
                    self._in_background(self._settle(request.answer))
                case "extend":
                    await self._extend(request.extend)
                case "drain":
                    self._draining = True
            self._moved.set()

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        # Once the stream has ended there is nobody to tell, which is no failure.
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self.end(error if isinstance(error, MeshError) else _failed(error))

    async def _settle(self, answer: delivery_pb2.Answer) -> None:
        name = answer.delivery_id
        # It stays among the held until it is settled, so that a drain waits for it.
        held = self._held.get(name)
        counted: bool | MeshError = False
        if held is not None and not held.over:
            counted = await self._settle_held(held, answer)
        self._release(name)
        if counted is True:
            status = status_pb2.Status()
        else:
            status = (counted or lease_lost(name)).to_status()
        await self._send(_Response(settled=delivery_pb2.Settled(delivery_id=name, status=status)))

    async def _settle_held(self, held: HeldEntry, answer: delivery_pb2.Answer) -> bool | MeshError:
        """Returns whether it counts, or why its reply may not go although it does."""
        held.over = True
        match answer.verdict:
            case delivery_pb2.VERDICT_ACK:
                reply: AnyMessage | None = None
                if answer.HasField("reply"):
                    try:
                        reply = await reply_to_delivery(
                            self._mesh, self._identity, held, answer.reply
                        )
                    except MeshError as error:
                        if error.code in _FORBIDDEN:
                            # The message was handled, so that it must not come again.
                            await self._settlement.finish(held, "answered_with_error", None, error)
                            return error
                        # The mailbox that it goes to is full, say. It comes again, and so does the reply.
                        return await self._try_again(held, error)
                return await self._mailboxes.acknowledge(self._settlement, held, reply)
            case delivery_pb2.VERDICT_RETRY:
                delay = (
                    answer.retry_after.ToNanoseconds() / 1e9
                    if answer.HasField("retry_after")
                    else None
                )
                return await self._try_again(held, _error_of(answer), delay)
            case _:
                # Whoever waits gets the error itself; others are told by the reply, if they can be.
                if answer.HasField("reply"):
                    with suppress(MeshError):
                        await reply_to_delivery(self._mesh, self._identity, held, answer.reply)
                return await self._bury(held, _error_of(answer))

    async def _try_again(
        self, held: HeldEntry, error: MeshError, delay: float | None = None
    ) -> bool:
        if held.attempt >= held.item.max_attempts:
            return await self._bury(held, error)
        return await self._settlement.retry(held, error, delay=delay)

    async def _bury(self, held: HeldEntry, error: MeshError) -> bool:
        if held.item.kind == TASK:
            # The task itself is tried again, or fails.
            await self._mesh.tasks.dropped(held.item, self.agent_id, error)
        return await self._settlement.bury(held, error)

    async def _extend(self, extend: delivery_pb2.Extend) -> None:
        names = list(extend.delivery_ids) or list(self._held)
        held = {name: self._held[name] for name in names if name in self._held}
        lost = await self._mailboxes.extend(self.connection_id, tuple(held.values()))
        expires = time.time() + self._mailboxes.options.lease
        for name in names:
            settled = delivery_pb2.Settled(delivery_id=name)
            if name not in held or held[name].item.item_id in lost:
                self._release(name)
                settled.status.CopyFrom(lease_lost(name).to_status())
            else:
                settled.status.SetInParent()
                settled.lease_expire_time.FromNanoseconds(int(expires * 1e9))
            await self._send(_Response(settled=settled))


def replaced(connection_id: str) -> MeshError:
    """The error for a connection that was attached anew."""
    return MeshError(
        grpc.StatusCode.ABORTED,
        "CONNECTION_REPLACED",
        f"The connection {connection_id} was attached anew on another stream.",
    )


def lease_lost(subject: str) -> MeshError:
    """The error for whoever speaks about what is not theirs any more."""
    return failed_precondition(
        f"The lease of {subject} is over; it went to another.", reason="LEASE_LOST", subject=subject
    )


def _error_of(answer: delivery_pb2.Answer) -> MeshError:
    if answer.error.code:
        return MeshError.from_status(answer.error)
    return unavailable("The agent gave no reason.", reason="HANDLER_FAILED")


def _failed(error: BaseException) -> MeshError:
    _log.error("a connection failed", exc_info=error)
    return unavailable("The connection failed; attach again.", reason="CONNECTION_FAILED")
