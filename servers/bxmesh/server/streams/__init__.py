"""The one work mechanism: durable queues on Redis Streams with leases and retries."""

from bxmesh.server.streams.connection import CONNECTION_ERRORS, connect
from bxmesh.server.streams.dead_letters import DeadLetters, StoredLetter
from bxmesh.server.streams.handling import Handler, WorkContext
from bxmesh.server.streams.metrics import QueueGauges, WorkerCounters
from bxmesh.server.streams.queue import QueueOptions, QueueStats, Ticket, WorkQueue
from bxmesh.server.streams.replies import Submission, WorkClient
from bxmesh.server.streams.worker import Worker, WorkerOptions

__all__ = [
    "CONNECTION_ERRORS",
    "DeadLetters",
    "Handler",
    "QueueGauges",
    "QueueOptions",
    "QueueStats",
    "StoredLetter",
    "Submission",
    "Ticket",
    "WorkClient",
    "WorkContext",
    "WorkQueue",
    "Worker",
    "WorkerCounters",
    "WorkerOptions",
    "connect",
]
