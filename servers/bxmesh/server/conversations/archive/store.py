"""Conversations in the database: an older revision never takes the place of a newer one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import Visibility
from bxmesh.server.conversations.archive.conditions import behind, picked, place_of, visible
from bxmesh.server.conversations.archive.rows import conversation_of, rows_of
from bxmesh.server.conversations.archive.seeing import seen_by
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.database import Database
from bxmesh.server.database.tables import (
    CONVERSATION_LABELS,
    CONVERSATION_MESSAGES,
    CONVERSATION_REMOVALS,
    CONVERSATIONS,
)
from bxmesh.server.errors import (
    MeshError,
    failed_precondition,
    invalid_argument,
    not_found,
    permission_denied,
)
from bxmesh.server.pages import Batch, collect, token_of, token_place
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change, sees

__all__ = ["ConversationStore", "no_such_conversation"]

_C, _M, _L = CONVERSATIONS.c, CONVERSATION_MESSAGES.c, CONVERSATION_LABELS.c
# With their questions they may be large.
_ROWS_AT_ONCE = 20
_DELETED_AT_ONCE = 200

_ONE = select(CONVERSATIONS).where(_C.conversation_id == bindparam("name"))
_SAID_OF_ONE = (
    select(_M.said).where(_M.conversation_id == bindparam("name"), _M.place > 0).order_by(_M.place)
)
_REST_OF_ONE = delete(CONVERSATION_MESSAGES).where(
    _M.conversation_id == bindparam("name"), _M.place > bindparam("last")
)


class ConversationStore:
    """All conversations. Methods raise MeshError UNAVAILABLE without the database; where they take an
    identity, None stands for the server itself, which sees everything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        new = (sqlite if database.dialect == "sqlite" else postgresql).insert
        # Made once, as making them takes longer than executing them.
        self._save_conversation = _saving_conversation(new)
        self._save_message = _saving_message(new)
        self._save_label: Any = new(CONVERSATION_LABELS).on_conflict_do_nothing()
        self._new = new

    async def save(self, conversation: pb.Conversation, team: str = "") -> bool:
        """Stores a conversation with its turns; returns whether it did, False when a newer revision
        is there. The first time says for good who owns it and which team sees it."""
        # What is written is what there is now, whatever changes meanwhile.
        data = conversation.SerializeToString()
        rows = await asyncio.to_thread(rows_of, data, team)

        def save(connection: Connection) -> bool:
            kept = connection.execute(self._save_conversation, rows.conversation).one_or_none()
            if kept is None:
                return False
            sees = " ".join(seen_by(*kept))
            if rows.labels:
                connection.execute(self._save_label, rows.labels)
            connection.execute(
                _REST_OF_ONE,
                {"name": conversation.conversation_id, "last": len(rows.messages) - 1},
            )
            connection.execute(
                self._save_message, [{**message, "sees": sees} for message in rows.messages]
            )
            return True

        return await self._database.write(save)

    async def get(self, conversation_id: str, identity: Identity | None) -> pb.Conversation:
        """Returns a conversation with its turns; raises MeshError NOT_FOUND, also for one that the
        identity does not see."""

        def get(connection: Connection) -> pb.Conversation:
            row = _find(connection, conversation_id, identity)
            return conversation_of(row, connection.scalars(_SAID_OF_ONE, {"name": conversation_id}))

        return await self._database.read(get)

    async def count_open(self, owner: str) -> int:
        """Returns how many conversations of an owner have not ended."""
        query = (
            select(func.count())
            .select_from(CONVERSATIONS)
            .where(_C.owner == owner, _C.state.not_in(ENDED))
        )
        return await self._database.read(lambda connection: connection.scalar(query) or 0)

    async def open_names(self, older_than: str, count: int) -> list[str]:
        """Returns conversations that have not ended, the oldest first, of those before a name."""
        query = (
            select(_C.conversation_id)
            .where(_C.conversation_id < older_than, _C.state.not_in(ENDED))
            .order_by(_C.conversation_id)
            .limit(count)
        )
        return await self._database.read(lambda connection: list(connection.scalars(query)))

    async def list(
        self, request: archive_pb.ListConversationsRequest, identity: Identity | None
    ) -> tuple[list[pb.Conversation], str]:
        """Returns a page of conversations without turns, the newest first, and the token of the next.

        Raises MeshError INVALID_ARGUMENT (PAGE_TOKEN_INVALID).
        """
        wanted = visible(identity) & picked(request.filter)

        async def read(place: str) -> Batch[Any]:
            rows = await self._page(wanted, place, newest_first=True)
            return Batch(rows, _place(rows[-1]) if len(rows) == _ROWS_AT_ONCE else "")

        async def shown(row: Any) -> pb.Conversation:
            return conversation_of(row)

        return await collect(request, read, _place, shown)

    async def export(
        self, request: archive_pb.ExportConversationsRequest, identity: Identity | None
    ) -> AsyncIterator[archive_pb.ExportConversationsResponse]:
        """Yields whole conversations, the oldest first, each with the token that goes on after it; what
        is deleted meanwhile is left out. Raises like `list`."""
        asked = archive_pb.ListConversationsRequest(
            filter=request.filter, page_token=request.resume_token
        )
        place = token_place(asked)
        wanted = visible(identity) & picked(request.filter)
        while True:
            found = await self._page(wanted, place, newest_first=False)
            for row in found:
                place = _place(row)
                said = await self._said(row.conversation_id)
                yield archive_pb.ExportConversationsResponse(
                    conversation=conversation_of(row, said), resume_token=token_of(asked, place)
                )
            if len(found) < _ROWS_AT_ONCE:
                return

    async def _said(self, conversation_id: str) -> Sequence[bytes]:
        return await self._database.read(
            lambda connection: connection.scalars(_SAID_OF_ONE, {"name": conversation_id}).all()
        )

    async def _page(
        self, wanted: ColumnElement[bool], place: str, *, newest_first: bool
    ) -> Sequence[Any]:
        order = [_C.create_time, _C.conversation_id]
        query = (
            select(CONVERSATIONS)
            .where(wanted, behind(place, newest_first=newest_first))
            .order_by(*(column.desc() if newest_first else column for column in order))
            .limit(_ROWS_AT_ONCE)
        )
        return await self._database.read(lambda connection: connection.execute(query).all())

    async def delete(self, conversation_id: str, identity: Identity | None) -> None:
        """Deletes a conversation with all that was said; its vectors follow. Raises MeshError
        NOT_FOUND, PERMISSION_DENIED for another's, and FAILED_PRECONDITION while it is under way."""

        def remove(connection: Connection) -> None:
            row = _find(connection, conversation_id, identity)
            if identity is not None and not may_change(identity, row.owner):
                raise permission_denied(
                    f"The conversation {conversation_id} is another's.", reason="NOT_THE_OWNER"
                )
            if row.state not in ENDED:
                raise failed_precondition(
                    f"The conversation {conversation_id} is under way. Cancel it first.",
                    reason="CONVERSATION_RUNNING",
                    subject=conversation_id,
                )
            self._remove(connection, [conversation_id])

        await self._database.write(remove)

    async def purge(
        self,
        wanted: archive_pb.ConversationFilter,
        *,
        validate_only: bool = False,
        also: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    ) -> archive_pb.PurgeConversationsResponse:
        """Deletes what a filter picks of what has ended, or only counts it; says how many
        conversations, and how many rows and messages with vectors. `also` is told the names of some at
        a time before they go, for what else is kept under them.

        Raises MeshError INVALID_ARGUMENT for a filter without end_time.
        """
        if not wanted.HasField("end_time"):
            raise invalid_argument("filter.end_time", "is needed: what began before it is deleted")
        return await self._purge(picked(wanted), validate_only=validate_only, also=also)

    async def forget_expired(
        self, also: Callable[[Sequence[str]], Awaitable[None]] | None = None
    ) -> int:
        """Deletes what has ended and has expired; returns how many conversations that were."""
        now = int(time.time() * 1e6)
        gone = await self._purge((_C.expire_time > 0) & (_C.expire_time < now), also=also)
        return gone.conversations

    async def _purge(
        self,
        wanted: ColumnElement[bool],
        *,
        validate_only: bool = False,
        also: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    ) -> archive_pb.PurgeConversationsResponse:
        ours = wanted & _C.state.in_(ENDED)
        answer = archive_pb.PurgeConversationsResponse()

        def count(connection: Connection, which: ColumnElement[bool]) -> None:
            conversations = connection.scalar(
                select(func.count()).select_from(CONVERSATIONS).where(which)
            )
            messages, vectors = connection.execute(
                select(func.count(), func.sum(case((_M.vectors != "", 1), else_=0)))
                .select_from(CONVERSATION_MESSAGES)
                .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
                .where(which)
            ).one()
            answer.conversations += conversations or 0
            answer.deleted_by_store["database"] += (conversations or 0) + messages
            answer.deleted_by_store["vectors"] += vectors or 0

        if validate_only:
            await self._database.read(lambda connection: count(connection, ours))
            return answer
        query = select(_C.conversation_id).where(ours).limit(_DELETED_AT_ONCE)
        while True:
            names = await self._database.read(lambda connection: connection.scalars(query).all())
            if not names:
                return answer
            if also is not None:
                await also(names)

            def remove(connection: Connection, names: Sequence[str] = names) -> None:
                # One may have been taken up again meanwhile.
                still = connection.scalars(
                    select(_C.conversation_id).where(_C.conversation_id.in_(names), ours)
                ).all()
                count(connection, _C.conversation_id.in_(still))
                self._remove(connection, still)

            await self._database.write(remove)

    def _remove(self, connection: Connection, names: Sequence[str]) -> None:
        """In the same transaction it is written down that vectors must go."""
        gone: Any = self._new(CONVERSATION_REMOVALS).from_select(
            ["conversation_id"],
            select(_M.conversation_id)
            .where(_M.conversation_id.in_(names), _M.vectors != "")
            .distinct(),
        )
        connection.execute(gone.on_conflict_do_nothing())
        connection.execute(delete(CONVERSATIONS).where(_C.conversation_id.in_(names)))


def _saving_conversation(new: Any) -> Any:
    statement = new(CONVERSATIONS)
    changed = ("state", "revision", "end_time", "expire_time", "conversation")
    return statement.on_conflict_do_update(
        index_elements=[_C.conversation_id],
        set_={name: statement.excluded[name] for name in changed},
        where=statement.excluded.revision >= _C.revision,
    ).returning(_C.owner, _C.visibility, _C.team)


def _saving_message(new: Any) -> Any:
    statement = new(CONVERSATION_MESSAGES)
    fixed = ("message_id", "conversation_id", "place", "sees")
    changed = [column.name for column in CONVERSATION_MESSAGES.columns if column.name not in fixed]
    return statement.on_conflict_do_update(
        index_elements=[_M.conversation_id, _M.place],
        set_={name: statement.excluded[name] for name in changed},
        # What stays as it is keeps its vectors.
        where=(statement.excluded.said != _M.said) | (statement.excluded.words != _M.words),
    )


def _find(connection: Connection, conversation_id: str, identity: Identity | None) -> Any:
    # PostgreSQL's text holds no zero bytes.
    if "\0" in conversation_id:
        raise no_such_conversation(conversation_id)
    row = connection.execute(_ONE, {"name": conversation_id}).one_or_none()
    if row is None or (identity is not None and not _sees(identity, row)):
        raise no_such_conversation(conversation_id)
    return row


def _place(row: Any) -> str:
    return place_of(row.create_time, row.conversation_id)


def _sees(identity: Identity, row: Any) -> bool:
    visibility: Visibility.ValueType = row.visibility
    return sees(identity, row.owner, visibility=visibility, team=row.team)


def no_such_conversation(conversation_id: str) -> MeshError:
    """The error for a conversation that there is not, or no longer, or that the caller does not
    see."""
    return not_found(
        f"There is no conversation {conversation_id}.",
        reason="CONVERSATION_NOT_FOUND",
        conversation_id=conversation_id,
    )
