"""The commands that need the server."""

from bxmesh.server.cli.demo import demo
from bxmesh.server.cli.doctor import doctor
from bxmesh.server.cli.serve import serve

__all__ = ["demo", "doctor", "serve"]
