"""What a model is writing, told in pieces that are neither too many nor too late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from bxmesh.client.conversations.question import MOST_TEXT
from bxmesh.client.errors import BxmeshError

__all__ = ["Written"]

_EVERY_SECONDS = 0.1
_MOST_CHARACTERS = 16_384


class Written:
    """Tells what is written, within a block: at once at first, then several times a second."""

    def __init__(self, tell: Callable[[str], Awaitable[None]]) -> None:
        self._tell = tell
        self._pieces: list[str] = []
        # An answer is no longer than this, and what is not of it need not be told.
        self._left = MOST_TEXT
        self._told = 0.0
        self._telling: asyncio.Task[None] | None = None

    def add(self, text: str) -> None:
        """Takes what was written; what it takes to tell it does not hold the model up."""
        text = text[: self._left].encode("utf-8", "replace").decode()
        self._left -= len(text)
        if not text:
            return
        self._pieces.append(text)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while self._pieces:
            await asyncio.sleep(max(0.0, self._told + _EVERY_SECONDS - time.monotonic()))
            text, self._pieces = "".join(self._pieces), []
            self._told = time.monotonic()
            try:
                for start in range(0, len(text), _MOST_CHARACTERS):
                    await self._tell(text[start : start + _MOST_CHARACTERS])
            except BxmeshError:
                # The result tells it all, or finds that nobody wants it any more.
                self._left = 0
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The result tells the rest: nobody waits for the last piece.
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
