"""How much of what is kept for good one owner may have."""

from __future__ import annotations

from dataclasses import dataclass

from bxmesh.server.errors import MeshError, resource_exhausted

__all__ = ["Holdings"]


@dataclass(frozen=True, slots=True)
class Holdings:
    """The bounds of a kind of things that have owners and versions."""

    kind: str
    """What they are called, such as functions."""
    most: int
    """Things of one owner."""
    most_versions: int
    """Versions of one of them."""
    most_bytes: int
    """Bytes of all versions of all things of one owner."""
    remedy: str
    """How to make room."""

    def require(self, owner: str, name: str, count: int, versions: int, size: int) -> None:
        """Raises MeshError RESOURCE_EXHAUSTED unless an owner may have so many things, the one of a
        name so many versions, and all together so many bytes."""
        if count > self.most:
            raise self._refusal(
                owner,
                f"TOO_MANY_{self.kind.upper()}",
                f"max_{self.kind}",
                f"{owner} has {self.most} {self.kind}, and nobody may keep more. Delete some.",
            )
        if versions > self.most_versions:
            raise self._refusal(
                owner,
                "TOO_MANY_VERSIONS",
                f"max_{self.kind[:-1]}_versions",
                f"{name} has {self.most_versions} versions, and may have no more. {self.remedy}",
            )
        if size > self.most_bytes:
            raise self._refusal(
                owner,
                "TOO_MANY_BYTES",
                "max_stored_bytes",
                f"The {self.kind} of {owner} would take {size} bytes with this, and nobody may keep "
                f"more than {self.most_bytes}. {self.remedy}",
            )

    @staticmethod
    def _refusal(owner: str, reason: str, quota: str, message: str) -> MeshError:
        return resource_exhausted(message, reason=reason, subject=f"identity:{owner}", quota=quota)
