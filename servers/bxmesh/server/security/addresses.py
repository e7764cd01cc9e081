"""The addresses of callers."""

from __future__ import annotations

from urllib.parse import unquote

__all__ = ["address_of"]


def address_of(peer: str) -> str:
    """Returns the address in gRPC's name of a peer, such as ipv4:192.0.2.1:5000."""
    kind, _, rest = unquote(peer).partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return rest.rpartition(":")[0].strip("[]")
    return kind
