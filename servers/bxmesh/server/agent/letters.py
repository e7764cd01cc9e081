"""Dead letters of mailboxes and work queues, as the contract shows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import message_pb2, queue_pb2, task_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.security.data_loss import QUARANTINED
from bxmesh.server.streams import StoredLetter, WorkQueue
from bxmesh.server.streams.mailboxes import MESSAGE, QUEUE, TASK
from bxmesh.server.tasks import TaskStore
from bxmesh.work.v1 import work_pb2

__all__ = ["Letter"]

_MOST_UNREADABLE = 64 << 10
_MOST_PARAMETERS = 64 << 10
# Nobody gave these up; they were found to be hopeless.
_NOBODYS = frozenset({"UNREADABLE", "FORGED_ENTRY", "WORKER_LOST", QUARANTINED})


@dataclass(frozen=True)
class Letter:
    """A dead letter of a queue."""

    queue: WorkQueue
    index: int
    """The queue's place among the others."""
    stored: StoredLetter

    @property
    def name(self) -> str:
        """The dead_letter_id: unique among all queues."""
        return f"{self.queue.options.name}:{self.stored.letter_id}"

    @property
    def position(self) -> tuple[int, int, int]:
        """Its place among the letters of all queues, by the time when it was given up."""
        return (*self.stored.position, self.index)

    @property
    def time(self) -> Timestamp:
        """When it was given up."""
        if self.stored.letter.HasField("last_time"):
            return self.stored.letter.last_time
        time = Timestamp()
        time.FromMilliseconds(min(self.stored.position[0], 253402300799999))
        return time

    @property
    def agent_id(self) -> str:
        """Whose mailbox it is out of; empty for none."""
        if self.queue.options.name != QUEUE:
            return ""
        return self.queue.keys.agent_of(self.stored.letter.origin_stream)

    @cached_property
    def content(self) -> message_pb2.Envelope | work_pb2.TaskDelivery | work_pb2.WorkItem | None:
        """A message, a task's delivery, an item of a work queue; None for what cannot be read."""
        entry = self.stored.entry()
        if entry is None:
            return None
        if self.queue.options.name != QUEUE:
            known = self.stored.letter.origin_stream.startswith(f"{self.queue.keys.root}:")
            return entry.item if known else None
        content: message_pb2.Envelope | work_pb2.TaskDelivery
        if entry.item.kind == MESSAGE:
            content = message_pb2.Envelope()
        elif entry.item.kind == TASK:
            content = work_pb2.TaskDelivery()
        else:
            return None
        try:
            if self.agent_id and entry.item.payload.Unpack(content):
                return content
        except DecodeError:
            pass
        return None

    @property
    def sender(self) -> str:
        """The identity on whose behalf it was sent; empty when that cannot be read."""
        entry = self.stored.entry()
        return entry.item.identity if entry else ""

    @property
    def quarantined(self) -> bool:
        """Whether it is held back from its recipient."""
        return MeshError.from_status(self.stored.letter.error).reason == QUARANTINED

    @property
    def capability(self) -> str:
        """The work that it is; empty when it is none, or cannot be read."""
        return self.content.kind if isinstance(self.content, work_pb2.WorkItem) else ""

    @property
    def origin(self) -> str:
        """The mailbox or queue it came from."""
        if self.queue.options.name != QUEUE:
            return f"capability/{self.capability or self.queue.options.name}"
        return f"agent/{self.agent_id}" if self.agent_id else self.stored.letter.origin_stream

    async def fits(self, wanted: queue_pb2.DeadLetterFilter, store: TaskStore) -> bool:
        """Whether all holds that is set in a filter, but for names."""
        if wanted.agent_id and self.agent_id != wanted.agent_id:
            return False
        if wanted.capability and (
            self.queue.options.name == QUEUE
            or wanted.capability not in (self.capability, self.queue.options.name)
        ):
            return False
        if wanted.HasField("start_time") and _ns(self.time) < _ns(wanted.start_time):
            return False
        if wanted.HasField("end_time") and _ns(self.time) >= _ns(wanted.end_time):
            return False
        if (
            wanted.reason
            and MeshError.from_status(self.stored.letter.error).reason != wanted.reason
        ):
            return False
        return not wanted.type or await self._type(store) == wanted.type

    async def _type(self, store: TaskStore) -> str:
        match self.content:
            case message_pb2.Envelope() as envelope:
                return envelope.message_type
            case work_pb2.TaskDelivery() as delivery:
                record = await store.read(delivery.task_id)
                return record.task().spec.task_type if record else ""
        return self.capability

    async def message(self, store: TaskStore) -> queue_pb2.DeadLetter:
        """The letter as the contract has it."""
        letter = self.stored.letter
        shown = queue_pb2.DeadLetter(
            dead_letter_id=self.name,
            error=letter.error,
            attempts=letter.attempts,
            first_time=letter.first_time if letter.HasField("first_time") else self.time,
            last_time=self.time,
            origin=self.origin,
            origin_entry_id=letter.origin_entry_id,
            trace_context=letter.trace_context,
        )
        if MeshError.from_status(letter.error).reason not in _NOBODYS:
            # In a mailbox the worker is a connection of its agent.
            shown.agent_id = self.agent_id or letter.worker_id
        match self.content:
            case message_pb2.Envelope() as envelope:
                shown.envelope.CopyFrom(envelope)
            case work_pb2.TaskDelivery() as delivery:
                record = await store.read(delivery.task_id)
                if record is None:
                    shown.task.task_id = delivery.task_id
                    shown.task.agent_id = self.agent_id
                else:
                    shown.task.CopyFrom(record.task())
            case work_pb2.WorkItem() as item:
                shown.task.CopyFrom(_as_task(item, letter))
            case None:
                shown.unreadable = letter.entry[:_MOST_UNREADABLE]
        return shown


def _as_task(item: work_pb2.WorkItem, letter: work_pb2.DeadLetter) -> task_pb2.Task:
    task = task_pb2.Task(
        task_id=item.item_id,
        spec=task_pb2.TaskSpec(task_type=item.kind, required_capabilities=[item.kind]),
        state=task_pb2.TASK_STATE_FAILED,
        error=letter.error,
        attempts=letter.attempts,
        owner=item.identity,
        create_time=item.enqueue_time,
        end_time=letter.last_time,
        trace_context=item.trace_context,
    )
    if item.payload.ByteSize() <= _MOST_PARAMETERS:
        task.spec.parameters.protobuf.CopyFrom(item.payload)
    return task


def _ns(time: Timestamp) -> int:
    return time.seconds * 1_000_000_000 + time.nanos
