"""Stored functions, as definitions and chains see them."""

from __future__ import annotations

from bxmesh.agent.v1 import function_pb2
from bxmesh.server.functions.cache import FunctionCache
from bxmesh.server.security.identities import Identity

__all__ = ["VisibleFunctions"]


class VisibleFunctions:
    """Functions by what they are, without how they are stored."""

    def __init__(self, cache: FunctionCache) -> None:
        self._cache = cache

    async def seen(self, name: str, wanted: str, identity: Identity) -> function_pb2.Function:
        """Returns a function by version, digest or alias that an identity sees; raises MeshError
        NOT_FOUND."""
        return (await self._cache.seen(name, wanted, identity)).function
