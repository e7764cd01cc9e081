"""Answers that mean the same: equal in their normal form, or near in meaning and not in contrast.

Meaning is looked at by complete linkage: every two texts of a group are at least so similar, so that
no chain of small steps leads from one answer to its opposite. It is computed on distinct texts in the order
of the alphabet; who gave them, how many, and in which order has no influence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.consensus.answers import Meaning
from bxmesh.server.conversations.consensus.contrasts import in_contrast
from bxmesh.server.conversations.consensus.voices import Table, Voice

__all__ = ["SIMILARITY", "Groups", "by_key", "by_meaning"]

SIMILARITY = 0.86
"""The cosine from which texts are near enough to mean the same."""

# Distinct texts of earlier turns that are compared by meaning, latest first.
_MOST_EARLIER = 512

Groups = Mapping[str, int]
"""Which group, by number, a voice's key belongs to. Keys of earlier turns may belong to none."""

_logger = logging.getLogger(__name__)


def by_key(voices: Iterable[Voice]) -> dict[str, int]:
    """Returns groups of what is equal."""
    return {key: index for index, key in enumerate(sorted({voice.key for voice in voices}))}


async def by_meaning(
    table: Table, meaning: Meaning | None, similarity: float = SIMILARITY
) -> dict[str, int]:
    """Returns groups of what is equal or, for texts, means the same; only equal where `meaning` fails."""
    groups = by_key(table.now.values())
    now = _texts(table.now.values())
    earlier: dict[str, tuple[str, ...]] = {}
    for turn in reversed(table.earlier):
        known = now.keys() | earlier.keys()
        new = {key: words for key, words in _texts(turn.values()).items() if key not in known}
        earlier |= dict(list(new.items())[: _MOST_EARLIER - len(earlier)])
    if meaning is None or len(now) + len(earlier) < 2 or not now:
        return groups
    texts = [*now.items(), *earlier.items()]
    try:
        similarities = _cosines(
            await meaning.embed([" ".join(words) for _, words in texts]), len(texts)
        )
    except Exception:
        _logger.warning("the meaning of answers cannot be looked at", exc_info=True)
        return groups
    similarities[in_contrast([words for _, words in texts])] = -np.inf

    keys = list(now)
    for cluster in _complete_linkage(similarities[: len(now), : len(now)], similarity):
        for member in cluster:
            groups[keys[member]] = groups[keys[cluster[0]]]
    by_group: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        by_group.setdefault(groups[key], []).append(index)
    for index, key in enumerate(earlier, len(now)):
        nearness, group = max(
            (similarities[index, members].min(), -group) for group, members in by_group.items()
        )
        if nearness >= similarity:
            groups[key] = -group
    return groups


def _texts(voices: Iterable[Voice]) -> dict[str, tuple[str, ...]]:
    return dict(sorted((voice.key, voice.words) for voice in voices if voice.words))


def _cosines(vectors: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
        raise ValueError(
            f"{count} texts have embeddings of shape {vectors.shape}, or not finite ones"
        )
    # Scaled first, so that no square is too large or too small.
    vectors = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0), 1e-300)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    cosines: NDArray[np.float64] = vectors @ vectors.T
    return cosines


def _complete_linkage(similarities: NDArray[np.float64], similarity: float) -> list[list[int]]:
    """Joins the nearest two clusters, the first of those that are equally near, until none is near."""
    linkage = similarities.copy()
    np.fill_diagonal(linkage, -np.inf)
    clusters = [[index] for index in range(len(linkage))]
    while len(linkage):
        first, second = divmod(int(linkage.argmax()), len(linkage))
        if linkage[first, second] < similarity:
            break
        first, second = sorted((first, second))
        joined = np.minimum(linkage[first], linkage[second])
        linkage[first] = linkage[:, first] = joined
        linkage[second] = linkage[:, second] = -np.inf
        clusters[first] += clusters[second]
        clusters[second] = []
    return [cluster for cluster in clusters if cluster]
