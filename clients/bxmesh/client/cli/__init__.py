"""The command line of bxmesh."""

from bxmesh.client.cli.group import main

__all__ = ["main"]
