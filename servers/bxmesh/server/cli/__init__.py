"""The commands that need the server."""

from bxmesh.server.cli.demo import demo
from bxmesh.server.cli.doctor import doctor
from bxmesh.server.cli.serve import serve
from bxmesh.server.cli.tls import tls

__all__ = ["demo", "doctor", "serve", "tls"]
