"""Looking after something now and then."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod

from bxmesh.server.errors import MeshError
from bxmesh.server.streams.ending import Background

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)


class Keeper(Background):
    """An async context manager, within which something is looked after."""

    seconds = 60.0
    """How long it rests in between."""
    what: str
    """What is looked after, for the log."""

    @abstractmethod
    async def look(self) -> None:
        """Looks once. Raises MeshError, after which it is tried again the next time."""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.seconds)
            try:
                await self.look()
            except MeshError as error:
                _log.warning("%s are not looked after: %s", self.what, error.message)
