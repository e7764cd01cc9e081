"""The registry of live agents and of definitions, as servers with a database offer it."""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio import Redis

from bxmesh.server.definitions.rpcs import DefinitionMesh, DefinitionRpcs
from bxmesh.server.registry.service import RegistryService

__all__ = ["FullRegistryService"]


class FullRegistryService(DefinitionRpcs, RegistryService):
    """All RPCs of the registry."""

    def __init__(
        self, redis: Redis, definitions: DefinitionMesh, is_identity: Callable[[str], bool]
    ) -> None:
        super().__init__(redis, is_identity=is_identity)
        self._definitions = definitions
