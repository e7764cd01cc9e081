"""States in Redis: what agents keep across restarts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from redis.asyncio import Redis

from bxmesh.agent.v1 import state_pb2
from bxmesh.server.agent.state_changes import Change, require_small
from bxmesh.server.agent.state_scripts import STORE
from bxmesh.server.errors import MeshError, internal
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import QueueKeys

__all__ = ["States", "state_topic"]

_MOST_TRIES = 64
_REQUEST_MS = 3_600_000
# A repeated request gets the answer of the first one as long as it is among so many; after that the
# present state, as nothing is changed twice.
_MOST_ANSWERS = 16
_ANSWERS_MS = 900_000


class _Stored(NamedTuple):
    state: state_pb2.AgentState
    owner: str


class States:
    """The states of all agents. Methods raise MeshError UNAVAILABLE without Redis."""

    def __init__(self, redis: Redis, keys: QueueKeys) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = ScriptBatcher(redis)
        # Those who change a state through this server do so in turn; the others are noticed by the
        # revision.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def read(self, agent_id: str) -> state_pb2.AgentState:
        """Returns a state, an empty one of the revision 0 when nothing was stored."""
        return (await self._read(agent_id)).state

    async def revision(self, agent_id: str) -> int:
        """Returns the revision of a state."""
        with redis_errors():
            found: Any = await self._redis.hget(self._key(agent_id), "revision")
        return int(found or 0)

    async def update(
        self,
        agent_id: str,
        change: Change,
        identity: str,
        owner_of: Callable[[str], str],
        *,
        expected_revision: int | None = None,
        request_id: str = "",
    ) -> state_pb2.AgentState:
        """Changes a state in one step and returns it.

        `owner_of` is given the owner so far ("" for none) and returns the one from now on, or
        raises MeshError when the identity may not change it. Raises MeshError ABORTED when the
        revision is another than the expected one, or others were faster again and again.
        """
        turn = self._turns.setdefault(agent_id, asyncio.Lock())
        async with turn:
            for _ in range(_MOST_TRIES):
                stored = await self._read(agent_id)
                owner = owner_of(stored.owner)
                first = await self._first_answer(identity, request_id, agent_id)
                if first is not None:
                    return first
                revision = stored.state.revision
                if expected_revision is not None and revision != expected_revision:
                    raise _conflict(agent_id, expected_revision, revision)
                state = _changed(stored.state, change, identity)
                request = self._request(identity, request_id, agent_id) if request_id else ""
                if (answer := await self._store(state, owner, request)) is not None:
                    return answer
        raise MeshError(
            grpc.StatusCode.ABORTED,
            "STATE_CONTENDED",
            f"Others changed the state of {agent_id} {_MOST_TRIES} times meanwhile. Try again.",
            metadata={"agent_id": agent_id, "revision": str(revision)},
            retry_after=0.1,
        )

    async def _read(self, agent_id: str) -> _Stored:
        with redis_errors():
            found: Any = await self._redis.hmget(self._key(agent_id), ["record", "owner"])
        record, owner = found
        if record is None:
            return _Stored(state_pb2.AgentState(agent_id=agent_id, value=Struct()), "")
        return _Stored(_parsed(record), (owner or b"").decode(errors="replace"))

    async def _first_answer(
        self, identity: str, request_id: str, agent_id: str
    ) -> state_pb2.AgentState | None:
        if not request_id:
            return None
        with redis_errors():
            revision: Any = await self._redis.get(self._request(identity, request_id, agent_id))
            if revision is None:
                return None
            entry = f"{int(revision)}-0"
            found: Any = await self._redis.xrange(self._answers(agent_id), entry, entry)
        return _parsed(found[0][1][b"record"]) if found else await self.read(agent_id)

    async def _store(
        self, state: state_pb2.AgentState, owner: str, request: str
    ) -> state_pb2.AgentState | None:
        """Returns the answer, None when another was faster."""
        key = self._key(state.agent_id)
        with redis_errors():
            answer = await self._scripts.call(
                STORE,
                [
                    key,
                    self._answers(state.agent_id),
                    request or key,
                ],
                [
                    state.revision - 1,
                    state.SerializeToString(),
                    owner,
                    self._keys.root,
                    state_topic(state.agent_id),
                    _REQUEST_MS if request else 0,
                    _MOST_ANSWERS,
                    _ANSWERS_MS,
                ],
            )
        match answer:
            case [1]:
                return state
            case [0, record]:
                return _parsed(record)
        return None

    def _key(self, agent_id: str) -> str:
        return f"{self._keys.root}:state:{agent_id}"

    def _answers(self, agent_id: str) -> str:
        return f"{self._keys.root}:state-answers:{agent_id}"

    def _request(self, identity: str, request_id: str, agent_id: str) -> str:
        # Names are of any length, so their digest stands for them.
        name = f"{identity}\0{agent_id}\0{request_id}".encode()
        return f"{self._keys.root}:state-request:{hashlib.sha256(name).hexdigest()[:32]}"


def state_topic(agent_id: str) -> str:
    """What changes when a state does."""
    return f"state:{agent_id}"


def _changed(before: state_pb2.AgentState, change: Change, identity: str) -> state_pb2.AgentState:
    state = state_pb2.AgentState()
    state.CopyFrom(before)
    change(state.value)
    require_small(state.value)
    state.revision += 1
    state.update_time.GetCurrentTime()
    state.updated_by = identity
    return state


def _parsed(record: bytes) -> state_pb2.AgentState:
    try:
        return state_pb2.AgentState.FromString(record)
    except DecodeError as error:
        raise internal("The stored state cannot be read.", reason="UNREADABLE") from error


def _conflict(agent_id: str, expected: int, revision: int) -> MeshError:
    return MeshError(
        grpc.StatusCode.ABORTED,
        "REVISION_CONFLICT",
        f"The state of {agent_id} is at revision {revision}, not {expected}. Read it again.",
        metadata={"agent_id": agent_id, "revision": str(revision)},
    )
