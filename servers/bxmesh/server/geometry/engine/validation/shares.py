"""How many belong to which class."""

from collections import Counter
from collections.abc import Iterable, Sequence

from bxmesh.server.geometry.engine.validation.types import Share


def shares(check: str, names: Sequence[str], found: Iterable[str]) -> tuple[Share, ...]:
    """Return a share for each name, in this order; none when nothing was found."""
    counts = Counter(found)
    total = counts.total()
    return tuple(Share(check, name, counts[name], counts[name] / total) for name in names if total)
