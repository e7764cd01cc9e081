"""All pages of a list, and moments as people read them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Any

from google.protobuf.message import Message

from bxmesh.client.sync import Mesh

__all__ = ["all_pages", "day"]

_SIZE = 1000


def all_pages(mesh: Mesh, request: Any) -> Iterator[Any]:
    """Yields the answers to a request that asks for pages, to the last."""
    request.page_size = _SIZE
    while True:
        answer = mesh.security.call(request)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def day(message: Message, field: str) -> str:
    """Returns a time of a message in local time, to the minute; empty when it is not set."""
    if not message.HasField(field):
        return ""
    moment: Any = getattr(message, field)
    return f"{moment.ToDatetime(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M}"
