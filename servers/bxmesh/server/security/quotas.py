"""What identities may hold at a time, by the policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bxmesh.security.v1 import violation_pb2
from bxmesh.security.v1.policy_pb2 import Policy
from bxmesh.server.errors import MeshError, resource_exhausted

from .events import IGNORED, SecurityEvents, ViolationEvent
from .policy_source import NO_POLICY, PolicySource

__all__ = ["UNLIMITED", "Allowance", "QuotaName", "Quotas", "most_for"]

QuotaName = Literal["max_bundle_bytes", "max_open_tasks", "max_queued_messages", "max_open_streams"]
"""The field of a Quota."""

_EXCEEDED = "QUOTA_EXCEEDED"


class _Form(NamedTuple):
    what: str
    remedy: str
    retry_after: float | None


_FORMS = {
    "max_bundle_bytes": _Form(
        "bytes of bundles", "Delete some with `bxmesh bundles delete`, or wait for their end.", None
    ),
    "max_open_tasks": _Form("tasks that have not ended", "Cancel some, or try again later.", 5.0),
    "max_queued_messages": _Form("messages in its mailboxes", "Try again later.", 1.0),
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much an identity may hold of what a quota bounds."""

    quota: QuotaName
    identity_id: str
    most: int

    def refusal(self, held: int, more: int = 1) -> MeshError:
        """Returns the error RESOURCE_EXHAUSTED (QUOTA_EXCEEDED) for so much more than is held."""
        form = _FORMS[self.quota]
        return resource_exhausted(
            f"{self.identity_id} has {held} {form.what}, and {more} more would be over the "
            f"{self.most} that the policy allows ({self.quota}). {form.remedy}",
            retry_after=form.retry_after,
            reason=_EXCEEDED,
            subject=f"identity:{self.identity_id}",
            quota=self.quota,
        )


class Quotas:
    """Finds what an identity may hold, and tells of those who want more."""

    def __init__(
        self,
        policies: PolicySource,
        roles_of: Callable[[str], Collection[str]],
        events: SecurityEvents,
    ) -> None:
        """Takes what says which roles an identity has, by its name."""
        self._policies = policies
        self._roles_of = roles_of
        self._events = events

    def bounds(self, quota: QuotaName) -> bool:
        """Whether the policy has a quota of this kind for anybody."""
        return any(getattr(each, quota) for each in self._policies.policy.quotas)

    def allowance(self, quota: QuotaName, identity_id: str) -> Allowance | None:
        """Returns how much an identity may hold; None when there is no limit."""
        if not self.bounds(quota):
            return None
        most = most_for(self._policies.policy, quota, identity_id, self._roles_of(identity_id))
        return None if most is None else Allowance(quota, identity_id, most)

    @contextmanager
    def telling(
        self, identity_id: str, action: str, *, address: str = "", resource: str = ""
    ) -> Iterator[None]:
        """Tells of whoever does something within the block that a quota refuses."""
        try:
            yield
        except MeshError as error:
            if error.reason == _EXCEEDED:
                self._events.violation(
                    ViolationEvent(
                        violation_pb2.VIOLATION_KIND_QUOTA,
                        violation_pb2.SEVERITY_LOW,
                        rule=error.metadata["quota"],
                        message=error.message,
                        identity_id=identity_id,
                        address=address,
                        action=action,
                        resource=resource,
                    )
                )
            raise


def most_for(
    policy: Policy, quota: QuotaName, identity_id: str, roles: Collection[str]
) -> int | None:
    """Returns the smallest limit that fits an identity; None when none does."""
    return min(
        (
            getattr(each, quota)
            for each in policy.quotas
            if getattr(each, quota)
            and (
                not each.identities
                or identity_id in each.identities
                or any(role in each.identities for role in roles)
            )
        ),
        default=None,
    )


UNLIMITED = Quotas(NO_POLICY, lambda identity_id: (), IGNORED)
"""The quotas where there is no policy."""
