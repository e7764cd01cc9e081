"""What the requests of one gateway share."""

from __future__ import annotations

from bxmesh.health.v1 import health_pb2
from bxmesh.server.http.limits import Places, Refusals
from bxmesh.server.http.mesh import Caller, MeshLink
from bxmesh.server.http.settings import HttpSettings

__all__ = ["Gateway"]


class Gateway:
    """The mesh behind, the settings, and the places there are."""

    def __init__(self, settings: HttpSettings, link: MeshLink) -> None:
        self.settings = settings
        self.link = link
        self.requests = Places(settings.max_requests, "requests")
        """Requests that are being answered."""
        self.uploads = Places(settings.max_uploads, "uploads")
        """Of these, those that bring files."""
        self.streams = Places(settings.max_streams, "streams")
        """Streams and web sockets that are open."""
        self.refusals = Refusals(settings.max_refusals)
        """Who has sent wrong keys."""

    async def known(self, mesh: Caller) -> None:
        """Raises what the mesh says to a caller that it does not know."""
        await mesh.unary(self.link.health.GetHealth, health_pb2.GetHealthRequest())
