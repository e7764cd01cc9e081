"""The keys of tasks in Redis: of the queue that mailboxes are in, so that one script may change a
task and post it."""

from __future__ import annotations

import hashlib

from bxmesh.server.streams.keys import QueueKeys
from bxmesh.server.streams.mailboxes import QUEUE

QUEUE_KEYS = QueueKeys(QUEUE)
ROOT = QUEUE_KEYS.root
"""What all keys begin with, the hash tag included. The scripts make the others from it."""
SPANS = f"{ROOT}:task-spans"
"""The stream of what agents and tasks were busy with, for figures."""
SLOTS_TOPIC = "task-slots"
"""What changes when a task waits, or an agent could take one that waits."""


def task_topic(task_id: str) -> str:
    """What changes when a task does."""
    return f"task:{task_id}"


def request_key(identity: str, request_id: str) -> str:
    """The task that a request made. Names are of any length, so their digest stands for them."""
    name = hashlib.blake2b(f"{identity}\0{request_id}".encode(), digest_size=16).hexdigest()
    return f"{ROOT}:task-request:{name}"
