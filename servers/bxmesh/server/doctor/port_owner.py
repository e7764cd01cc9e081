"""Who listens on a TCP port, as far as Linux tells this user."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["port_owner"]

_LISTENS = "0A"


def port_owner(port: int) -> str:
    """Returns the process that listens on a port, as "name (process N)"; empty when unknown."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    if not sockets:
        return ""
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(_target(link) in sockets for link in descriptors.iterdir()):
                name = (descriptors.parent / "comm").read_text().strip()
                return f"{name} (process {descriptors.parent.name})"
    return ""


def _target(link: Path) -> str:
    # A descriptor may be closed while the others of its process are looked at.
    with suppress(OSError):
        return str(link.readlink())
    return ""


def _listening(port: int) -> list[str]:
    inodes = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.append(fields[9])
    return inodes
