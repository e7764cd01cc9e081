"""Every key that the work mechanism uses in Redis.

The braces are hash tags: keys with the same tag live in the same slot of a cluster, so that one
script may touch them together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "bxmesh"
GROUP = "workers"

# The fields of a stream entry.
ENTRY = b"entry"
DELIVERIES = b"deliveries"
MOVED = b"moved"

_INBOX = re.compile(r":inbox:([A-Za-z0-9][A-Za-z0-9._-]{0,127}):[1-4]")


def reply_channel(server_id: str) -> str:
    """The channel on which a server hears how its work goes."""
    return f"{PREFIX}:replies:{server_id}"


def server_channel(server_id: str) -> str:
    """The channel on which a server hears what others want it to know."""
    return f"{PREFIX}:servers:{server_id}"


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
    def journal(self) -> str:
        """The stream of what the activity log is to be told; it is there while a server keeps one,
        and otherwise nothing is added."""
        return f"{self.root}:journal"

    @property
    def cancellations(self) -> str:
        """The channel that tells workers what nobody waits for any more."""
        return f"{self.root}:cancellations"

    def stopped(self, item_id: str) -> str:
        """Why the last worker at an item was stopped from outside."""
        return f"{self.root}:stopped:{item_id}"

    def outcome(self, item_id: str) -> str:
        """How an item ended; what has ended is never begun again, so this also marks what was
        cancelled."""
        return f"{self.root}:outcome:{item_id}"

    def request(self, request_id: str) -> str:
        """Which item a request id stands for (`item`), and how often it was repeated (`joined`)."""
        return f"{self.root}:request:{request_id}"

    # Mailboxes: four streams for each agent, in a queue that has no workers of its own.

    def inbox(self, agent_id: str, priority: int) -> str:
        """The stream of what waits for an agent with a priority, 1 (low) to 4 (critical)."""
        return f"{self.root}:inbox:{agent_id}:{priority}"

    def inboxes(self, agent_id: str) -> list[str]:
        """An agent's streams, the most urgent first."""
        return [self.inbox(agent_id, priority) for priority in (4, 3, 2, 1)]

    def agent_of(self, stream: str) -> str:
        """Whose mailbox a stream belongs to; empty when it is none of this queue's."""
        found = _INBOX.fullmatch(stream.removeprefix(self.root))
        return found[1] if found and stream.startswith(self.root) else ""

    def home(self, stream: str) -> str:
        """Where an entry of a stream goes when it is to be tried again."""
        return stream if self.agent_of(stream) else self.shared

    @property
    def mailboxes(self) -> str:
        """The agents that have a mailbox."""
        return f"{self.root}:mailboxes"

    @property
    def leased(self) -> str:
        """The inboxes out of which something is held, by the time to look whether it still is."""
        return f"{self.root}:leased"

    def wanted(self, topic: str) -> str:
        """The channels of the servers that want to know when something changes."""
        return f"{self.root}:wanted:{topic}"

    def waiting(self, identity: str) -> str:
        """How much waits in all the mailboxes of an identity, counted a moment ago."""
        return f"{self.root}:waiting:{identity}"

    def attached(self, agent_id: str) -> str:
        """The channels of the servers that an agent is connected to."""
        return f"{self.root}:attached:{agent_id}"

    def connections(self, agent_id: str) -> str:
        """An agent's connections, each with the registry's lease that it was made under."""
        return f"{self.root}:connections:{agent_id}"

    def history(self, agent_id: str) -> str:
        """What an agent has acknowledged lately."""
        return f"{self.root}:history:{agent_id}"

    def figures(self, agent_id: str) -> str:
        """Counts of what became of an agent's messages."""
        return f"{self.root}:figures:{agent_id}"

    def dead_of(self, agent_id: str) -> str:
        """Which dead letters are out of an agent's mailbox, by time; some may be gone by now."""
        return f"{self.root}:dead-of:{agent_id}"

    def mutation(self, name: str) -> str:
        """How far a request that does much in many steps has come, and its answer."""
        return f"{self.root}:mutation:{name}"

    def waiter(self, agent_id: str, message_id: str) -> str:
        """Who waits for the answer to an agent's message."""
        return f"{self.root}:waiter:{agent_id}:{message_id}"
