"""The RPCs that send messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc

from bxmesh.agent.v1 import message_pb2 as pb
from bxmesh.registry.v1.agent_pb2 import AgentFilter
from bxmesh.server.agent.mesh import AgentMesh, caller
from bxmesh.server.agent.posting import (
    accept,
    named_by_sender,
    post,
    post_direct,
    quarantine,
    require_recipient,
    unknown_recipient,
)
from bxmesh.server.agent.replies import answer_of, answer_waiting, wait_for_answer
from bxmesh.server.agent_selection import fits
from bxmesh.server.errors import MeshError, deadline_exceeded, invalid_argument
from bxmesh.server.security.data_loss import Verdict
from bxmesh.server.streams import Ticket

Context = grpc.aio.ServicerContext[Any, Any]

_AT_ONCE = 64
_MOST_BYTES_AT_ONCE = 16 << 20
_TOO_LATE = ("DEADLINE_EXCEEDED", "MESSAGE_EXPIRED")


class MessageRpcs:
    """SendMessage and BroadcastMessage."""

    _mesh: AgentMesh

    async def SendMessage(
        self, request: pb.SendMessageRequest, context: Context
    ) -> pb.SendMessageResponse:
        """Sends one message, and waits for its answer when asked to."""
        mesh, identity = self._mesh, caller()
        envelope = await accept(mesh, request.envelope, identity, request.request_id)
        response = pb.SendMessageResponse(
            message_id=envelope.message_id, create_time=envelope.create_time
        )
        direct = request.delivery_mode == pb.DELIVERY_MODE_DIRECT
        verdict = Verdict(envelope)
        if not direct:
            verdict = await mesh.data.inspect(envelope, identity)
            envelope = verdict.envelope
        if verdict.quarantine is None and await answer_waiting(mesh, envelope):
            return response
        mesh.rules.check(envelope.sender, envelope.recipient, envelope.message_type)
        known = await require_recipient(mesh, envelope.recipient)
        if not known and (direct or not request.hold_for_recipient):
            raise unknown_recipient(envelope.recipient, may_hold=not direct)
        response.held = not known
        once = named_by_sender(request)
        seconds = request.reply_timeout.ToNanoseconds() / 1e9
        if remaining := context.time_remaining():
            seconds = min(seconds, remaining)
        asks = request.HasField("reply_timeout") and seconds > 0
        if verdict.quarantine is not None:
            await quarantine(mesh, envelope, identity, verdict.quarantine, once=once)
            if asks:
                raise verdict.quarantine
            response.quarantined = True
        elif asks:
            response.reply.CopyFrom(
                await self._request(envelope, identity, seconds, direct=direct, once=once)
            )
            response.receivers = int(direct)
        elif direct:
            response.receivers = await post_direct(mesh, envelope)
        else:
            await post(mesh, envelope, identity, once=once)
        return response

    async def _request(
        self, envelope: pb.Envelope, identity: str, seconds: float, *, direct: bool, once: bool
    ) -> pb.Envelope:
        """Sends a message and returns its answer; raises MeshError DEADLINE_EXCEEDED without one."""
        mesh = self._mesh
        deadline = time.time() + seconds

        async def add(item_id: str, channel: str) -> Ticket:
            await wait_for_answer(mesh, envelope, item_id, channel, seconds)
            if not direct:
                ticket = await post(
                    mesh,
                    envelope,
                    identity,
                    once=once,
                    item_id=item_id,
                    reply_to=channel,
                    deadline=deadline,
                )
                if ticket.repeated:
                    # The answer is the first one's, which may still be on its way.
                    await wait_for_answer(mesh, envelope, ticket.item_id, channel, seconds)
                return ticket
            if not await post_direct(mesh, envelope):
                raise unknown_recipient(envelope.recipient, may_hold=False)
            return Ticket(item_id, "", "", "", repeated=False)

        ends = asyncio.get_running_loop().time() + seconds
        try:
            async with mesh.client.awaiting(mesh.mailboxes.queue, add) as submission:
                return answer_of(await submission.outcome(ends))
        except MeshError as error:
            # The handler's own timeout is its error, and told as such.
            if error.reason not in _TOO_LATE:
                raise
            raise deadline_exceeded(
                f"{envelope.recipient} did not answer in {seconds:.3g} s.",
                reason="NO_REPLY",
                message_id=envelope.message_id,
            ) from error
        finally:
            with contextlib.suppress(Exception):
                key = mesh.mailboxes.keys.waiter(envelope.sender, envelope.message_id)
                await mesh.redis.delete(key)

    async def BroadcastMessage(
        self, request: pb.BroadcastMessageRequest, context: Context
    ) -> pb.BroadcastMessageResponse:
        """Sends a message to every live agent that fits."""
        mesh, identity = self._mesh, caller()
        envelope = await accept(mesh, request.envelope, identity, request.request_id)
        if envelope.recipient:
            raise invalid_argument("envelope.recipient", "a broadcast has none")
        direct = request.delivery_mode == pb.DELIVERY_MODE_DIRECT
        held = None
        if not direct:
            verdict = await mesh.data.inspect(envelope, identity)
            envelope, held = verdict.envelope, verdict.quarantine
        wanted = AgentFilter(capabilities=request.capabilities, agent_type=request.agent_type)
        recipients = [
            agent.agent_id
            for agent in await mesh.directory.everybody()
            if fits(agent, wanted)
            and (request.include_sender or agent.agent_id != envelope.sender)
            and mesh.rules.allows(envelope.sender, agent.agent_id, envelope.message_type)
        ]
        once = named_by_sender(request)
        most = _MOST_BYTES_AT_ONCE // max(1, envelope.ByteSize())
        room = asyncio.Semaphore(max(1, min(_AT_ONCE, most)))

        async def send(agent_id: str) -> str:
            async with room:
                copy = pb.Envelope()
                copy.CopyFrom(envelope)
                copy.recipient = agent_id
                try:
                    if direct:
                        await post_direct(mesh, copy)
                    elif held is not None:
                        await quarantine(mesh, copy, identity, held, once=once)
                    else:
                        await post(mesh, copy, identity, once=once)
                except MeshError as error:
                    if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    return agent_id
            return ""

        refused = await asyncio.gather(*map(send, recipients))
        return pb.BroadcastMessageResponse(
            message_id=envelope.message_id,
            recipients=len(recipients),
            refused_agent_ids=sorted(filter(None, refused)),
            quarantined=held is not None,
        )
