"""Hosts: what runs definitions as agents of the mesh.

    async with AsyncMesh() as mesh:
        await Host(mesh).run()

Definitions with a model need the extra `host`: pip install 'bxmesh[host]'.
"""

from bxmesh.client.host.figures import AgentFigures
from bxmesh.client.host.host import Host

__all__ = ["AgentFigures", "Host"]
