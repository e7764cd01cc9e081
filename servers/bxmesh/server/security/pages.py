"""Pages of what lies in memory, in the order of names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from bxmesh.server.errors import invalid_argument

__all__ = ["page_of"]

_DEFAULT_SIZE = 100

T = TypeVar("T")


def page_of(
    items: Iterable[T], name: Callable[[T], str], request: Any, *, newest_first: bool = False
) -> tuple[list[T], str]:
    """Returns a page of what is sorted by name, and the token of the next page, empty on the last.

    A token is good for requests that ask for the same; names sort backwards with `newest_first`.
    Raises MeshError INVALID_ARGUMENT for a token that is none, or of another request.
    """
    after = _start(request)
    rest = [
        item
        for item in items
        if not after or (name(item) < after if newest_first else name(item) > after)
    ]
    page = rest[: request.page_size or _DEFAULT_SIZE]
    more = len(page) < len(rest)
    return page, f"{_digest(request)}:{name(page[-1])}" if more else ""


def _start(request: Any) -> str:
    if not request.page_token:
        return ""
    digest, _, name = request.page_token.partition(":")
    if digest != _digest(request) or not name:
        raise invalid_argument(
            "page_token",
            "is not the next_page_token of a page with this filter",
            reason="PAGE_TOKEN_INVALID",
        )
    return str(name)


def _digest(request: Any) -> str:
    wanted = type(request)()
    wanted.CopyFrom(request)
    wanted.ClearField("page_token")
    wanted.ClearField("page_size")
    return hashlib.sha256(wanted.SerializeToString(deterministic=True)).hexdigest()[:16]
