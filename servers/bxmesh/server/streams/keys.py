"""Every key that the work mechanism uses in Redis.

The braces are hash tags: keys with the same tag live in the same slot of a cluster, so that one
script may touch them together.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "bxmesh"
GROUP = "workers"

# The fields of a stream entry.
ENTRY = b"entry"
DELIVERIES = b"deliveries"
MOVED = b"moved"


def reply_channel(server_id: str) -> str:
    """The channel on which a server hears how its work goes."""
    return f"{PREFIX}:replies:{server_id}"


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue."""

    queue: str

    @property
    def root(self) -> str:
        """What all of them begin with, the hash tag included."""
        return f"{PREFIX}:{{work:{self.queue}}}"

    @property
    def shared(self) -> str:
        """The stream that every worker of the queue reads."""
        return f"{self.root}:shared"

    def lane(self, worker_id: str) -> str:
        """The stream that one worker reads: work that it is best placed to do."""
        return f"{self.root}:lane:{worker_id}"

    @property
    def lanes(self) -> str:
        """The workers that have a lane, by the time until which they hold it."""
        return f"{self.root}:lanes"

    @property
    def delayed(self) -> str:
        """The retries that wait, by the time they are due."""
        return f"{self.root}:delayed"

    @property
    def dead(self) -> str:
        """The dead letters."""
        return f"{self.root}:dead"

    @property
    def cancellations(self) -> str:
        """The channel that tells workers what nobody waits for any more."""
        return f"{self.root}:cancellations"

    def outcome(self, item_id: str) -> str:
        """How an item ended; what has ended is never begun again, so this also marks what was
        cancelled."""
        return f"{self.root}:outcome:{item_id}"

    def request(self, request_id: str) -> str:
        """Which item a request id stands for (`item`), and how often it was repeated (`joined`)."""
        return f"{self.root}:request:{request_id}"
