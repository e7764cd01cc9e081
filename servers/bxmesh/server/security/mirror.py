"""A copy of all security records in each server's memory, so that no call waits for Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from bxmesh.server.errors import MeshError, unavailable
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background

from .records import Change, ForgedRecordError, Memo, Record, Records

__all__ = ["Mirror"]

_log = logging.getLogger(__name__)

_BLOCK_MS = 1_000
_PAUSE_SECONDS = 0.2
# A server that has not heard of Redis for so long might honour what was revoked meanwhile.
_STALE_SECONDS = 5.0


class Mirror(Background):
    """Follows the records between `async with` and its end; commits through it are seen at once.

    A forged record is left out, and told to `on_forged` with its kind and name.
    """

    def __init__(self, records: Records, kinds: Sequence[str]) -> None:
        """Takes the kinds of records to hold."""
        self.records = records
        self.on_forged: Callable[[str, str], None] = lambda kind, name: None
        self._copies: dict[str, dict[str, Record]] = {kind: {} for kind in kinds}
        self._revision = 0
        self._heard = float("-inf")
        self._listeners: list[Callable[[], None]] = []
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self._read_all()
        return await super().__aenter__()

    @property
    def revision(self) -> int:
        """The last commit that is in the copy."""
        return self._revision

    def all(self, kind: str) -> Mapping[str, Record]:
        """All records of a kind by name; do not change it."""
        return self._copies[kind]

    def get(self, kind: str, name: str) -> Record | None:
        """A record, None when there is none."""
        return self._copies[kind].get(name)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has a function called after every change of the copy."""
        self._listeners.append(listener)

    def check_fresh(self) -> None:
        """Raises MeshError UNAVAILABLE when the copy is so old that nothing may rest on it."""
        if time.monotonic() - self._heard > _STALE_SECONDS:
            raise unavailable(
                "Credentials cannot be checked, because Redis cannot be reached. "
                "Try again in a moment.",
                retry_after=1.0,
                reason="REDIS_UNAVAILABLE",
            )

    async def commit(
        self, changes: Sequence[Change], memo: Memo | None = None, answer: bytes = b""
    ) -> tuple[int, bytes | None]:
        """Commits like `Records.commit`, and returns when the copy has the change."""
        revision, first = await self.records.commit(changes, memo, answer)
        await self._reach(revision)
        return revision, first

    async def catch_up(self) -> None:
        """Returns when the copy has all that is committed by now."""
        await self._reach(await self.records.revision())

    async def _reach(self, revision: int) -> None:
        try:
            async with asyncio.timeout(_STALE_SECONDS), self._news:
                await self._news.wait_for(lambda: self._revision >= revision)
        except TimeoutError:
            self._heard = float("-inf")
            self.check_fresh()

    async def _run(self) -> None:
        away = False
        while True:
            try:
                events = await self.records.events(self._revision, _BLOCK_MS)
                self._heard = time.monotonic()
                if events is None:
                    await self._read_all()
                for revision, changed in events or ():
                    for kind, name in changed:
                        await self._read(kind, name)
                    await self._tell(revision)
                away = False
            except (MeshError, *REDIS_ERRORS) as error:
                if not away:
                    _log.warning("changes of credentials are not heard of: %s", error)
                away = True
                await asyncio.sleep(_PAUSE_SECONDS)
            except Exception:
                # What Redis holds may be anything.
                _log.exception("changes of credentials are not heard of")
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _read_all(self) -> None:
        revision = await self.records.revision()
        for kind in self._copies:
            self._copies[kind] = {}
            for name in await self.records.names(kind):
                await self._read(kind, name)
        self._heard = time.monotonic()
        await self._tell(revision)

    async def _read(self, kind: str, name: str) -> None:
        if kind not in self._copies:
            return
        try:
            record = await self.records.get(kind, name)
        except ForgedRecordError as error:
            _log.error("%s", error)
            self.on_forged(kind, name)
            record = None
        if record is None:
            self._copies[kind].pop(name, None)
        else:
            self._copies[kind][name] = record

    async def _tell(self, revision: int) -> None:
        async with self._news:
            self._revision = revision
            self._news.notify_all()
        for listener in self._listeners:
            listener()
