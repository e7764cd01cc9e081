"""Pages: where one begins, and the token of the next."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from bxmesh.server.errors import MeshError, invalid_argument

__all__ = ["Batch", "collect", "page_of", "token_invalid", "token_of", "token_place"]

_DEFAULT_SIZE = 100
# What is left out is looked at too, and some call must look at the rest.
_MOST_READS = 25
# gRPC clients take messages of 4 MiB.
_MOST_BYTES = 2 << 20

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=Message)


class Batch(NamedTuple, Generic[R]):
    """What was read of a list at once."""

    rows: Sequence[R]
    end: str
    """Up to which place was looked; empty when nothing comes behind."""


async def collect(
    request: Any,
    read: Callable[[str], Awaitable[Batch[R]]],
    place_of: Callable[[R], str],
    shown: Callable[[R], Awaitable[M | None]],
    *,
    begin: str = "",
) -> tuple[list[M], str]:
    """Returns a page of what is read in batches, and the token of the next page, empty on the last.

    `read` takes the place behind which a batch begins, for the first page `begin`; `shown` returns
    what a row is shown as, None to leave it out. A page of large things ends early, and so does one
    for which much was read: then it may be empty, and have a next one. Raises MeshError like
    `token_place`, and what `read` and `shown` raise.
    """
    place, size, room = (
        token_place(request) or begin,
        request.page_size or _DEFAULT_SIZE,
        _MOST_BYTES,
    )
    page: list[M] = []
    for _ in range(_MOST_READS):
        batch = await read(place)
        for row in batch.rows:
            message = await shown(row)
            if message is not None:
                room -= message.ByteSize()
                if page and (len(page) == size or room < 0):
                    return page, token_of(request, place)
                page.append(message)
            place = place_of(row)
        if not batch.end:
            return page, ""
        place = batch.end
    return page, token_of(request, place)


def page_of(
    items: Iterable[T], name: Callable[[T], str], request: Any, *, newest_first: bool = False
) -> tuple[list[T], str]:
    """Returns a page of what is sorted by name, and the token of the next page, empty on the last.

    A page of large things ends early. Names sort backwards with `newest_first`. Raises MeshError
    like `token_place`.
    """
    after = token_place(request)
    rest = [
        item
        for item in items
        if not after or (name(item) < after if newest_first else name(item) > after)
    ]
    page: list[T] = []
    size = 0
    for item in rest[: request.page_size or _DEFAULT_SIZE]:
        size += item.ByteSize() if isinstance(item, Message) else len(name(item))
        if page and size > _MOST_BYTES:
            break
        page.append(item)
    return page, token_of(request, name(page[-1])) if len(page) < len(rest) else ""


def token_place(request: Any) -> str:
    """Returns the place behind which the page begins that a request asks for; empty for the first.

    Raises MeshError INVALID_ARGUMENT for a token that is none, or of a request with other filters.
    """
    if not request.page_token:
        return ""
    digest, _, place = request.page_token.partition(":")
    # PostgreSQL's text holds no zero bytes, and nothing that there is has any in its name.
    if digest != _digest(request) or not place or "\0" in place:
        raise token_invalid()
    return str(place)


def token_invalid() -> MeshError:
    """The error for a token that is none, also where only its place tells."""
    return invalid_argument(
        "page_token",
        "is not the next_page_token of a page with this filter",
        reason="PAGE_TOKEN_INVALID",
    )


def token_of(request: Any, place: str) -> str:
    """Returns the token of the page that begins behind a place."""
    return f"{_digest(request)}:{place}"


def _digest(request: Any) -> str:
    wanted = type(request)()
    wanted.CopyFrom(request)
    wanted.ClearField("page_token")
    wanted.ClearField("page_size")
    return hashlib.sha256(wanted.SerializeToString(deterministic=True)).hexdigest()[:16]
