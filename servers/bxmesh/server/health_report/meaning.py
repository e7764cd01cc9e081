"""What finds conversations by what they mean: an embedding model and a store of vectors.

Neither is given work for the report's sake, which a provider would charge for. Whether they are there
is looked at, and how the last use went is remembered from the work that they are given anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from bxmesh.server.conversations.archive import Archive
from bxmesh.server.conversations.archive.embedding import EmbeddingError
from bxmesh.server.conversations.archive.embedding.watched import WatchedEmbedder
from bxmesh.server.conversations.archive.pieces import VectorsAwayError
from bxmesh.server.conversations.archive.uses import Uses
from bxmesh.server.conversations.archive.vectors import Vectors
from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.errors import unavailable
from bxmesh.server.health_report.report import Check, Examined
from bxmesh.server.settings import Settings

__all__ = ["meaning_checks"]

_MODEL, _VECTORS = "embedding_model", "vector_store"
_LATELY_SECONDS = 600.0
_SLOW_SECONDS = 15.0
# What is imported for it takes a moment, and less than a check may.
_OPENING_SECONDS = 1.5
_LONGEST_OPENING_SECONDS = 30.0
_REMEDY = {
    _MODEL: "Look at the embedding server, BXMESH_EMBEDDING_URL, _MODEL and _KEY; "
    "conversations are found by words alone meanwhile.",
    _VECTORS: "Look at the folder `vectors` of the state directory, or at the server of BXMESH_QDRANT_URL; "
    "conversations are found by words alone meanwhile.",
}


def meaning_checks(settings: Settings, archive: Archive) -> dict[str, Check]:
    """Returns the checks of what a server has to find conversations by meaning; those of what its
    settings ask for in vain, and none where they ask for nothing and nothing is installed."""
    if archive.meaning is not None and archive.vectors is not None:
        return {
            _MODEL: _embedding_model(archive.meaning, settings.embedding_url),
            _VECTORS: _vector_store(archive.vectors, settings.qdrant_url),
        }
    asked = {_MODEL: settings.embedding_url, _VECTORS: settings.qdrant_url}
    return {name: _missing(name) for name, url in asked.items() if url}


def _embedding_model(embedder: WatchedEmbedder, url: str) -> Check:
    """Whether the model is there, and gave vectors when it was last asked for some."""

    async def check() -> Examined:
        details = {
            "model": embedder.name,
            "dimension": str(embedder.dimension),
            "server": _host(url) or "in this process",
            **_figures(embedder.uses),
        }
        try:
            await embedder.look()
        except EmbeddingError as error:
            return Examined([fail(_MODEL, str(error), _REMEDY[_MODEL])], details)
        return Examined([_by_uses(_MODEL, embedder.uses, f"{embedder.name} is there")], details)

    return check


def _vector_store(vectors: Vectors, url: str) -> Check:
    """Whether vectors can be read and, in a folder, written."""
    opening: asyncio.Task[str] | None = None
    began = 0.0

    async def is_open() -> Finding | None:
        nonlocal opening, began
        if opening is None:
            opening, began = asyncio.create_task(_opened(vectors)), time.monotonic()
        await asyncio.wait({opening}, timeout=_OPENING_SECONDS)
        if opening.done():
            done, opening = opening, None
            why = done.result()
            return fail(_VECTORS, why, _REMEDY[_VECTORS]) if why else None
        if failure := vectors.uses.failure:
            return fail(_VECTORS, f"cannot be opened: {failure.why}", _REMEDY[_VECTORS])
        if time.monotonic() - began < _LONGEST_OPENING_SECONDS:
            raise unavailable("It is being opened.")
        message = f"does not open within {_LONGEST_OPENING_SECONDS:g} s"
        return fail(_VECTORS, message, _REMEDY[_VECTORS])

    async def check() -> Examined:
        details = {"server": _host(url) or "a folder of this process"}
        try:
            if not vectors.connected and (finding := await is_open()):
                return Examined([finding], details)
            count = await vectors.look()
        except VectorsAwayError as error:
            return Examined([fail(_VECTORS, str(error), _REMEDY[_VECTORS])], details)
        details |= {"vectors": str(count), **_figures(vectors.uses)}
        return Examined([_by_uses(_VECTORS, vectors.uses, f"{count} vectors")], details)

    return check


async def _opened(vectors: Vectors) -> str:
    """Returns why vectors cannot be opened; empty when they are. Nobody may be there to hear it."""
    try:
        await vectors.connect()
    except VectorsAwayError as error:
        return str(error)
    return ""


def _missing(name: str) -> Check:
    async def check() -> Examined:
        message = "what finds by meaning is not installed"
        return Examined([warn(name, message, "pip install 'bxmesh[embedding,qdrant]'")])

    return check


def _by_uses(name: str, uses: Uses, fine: str) -> Finding:
    failure = uses.failure
    if failure is not None and failure.seconds_ago < _LATELY_SECONDS:
        message = f"the last use, {failure.seconds_ago:.0f} s ago, failed: {failure.why}"
        return fail(name, message, _REMEDY[name])
    if uses.waiting > _SLOW_SECONDS:
        return warn(name, f"has not answered for {uses.waiting:.0f} s", _REMEDY[name])
    return ok(name, fine if uses.success is not None else f"{fine}; not used yet")


def _figures(uses: Uses) -> Mapping[str, str]:
    """The seconds since it worked and since it did not, where it did."""
    figures = {}
    if uses.success is not None:
        figures["seconds_since_success"] = f"{uses.success:.0f}"
    if uses.failure is not None:
        figures["seconds_since_failure"] = f"{uses.failure.seconds_ago:.0f}"
    return figures


def _host(url: str) -> str:
    """Returns whose URL it is, without what may be secret in it."""
    return urlsplit(url).hostname or ""
