"""Putting dead letters back, and deleting them for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bxmesh.agent.v1 import queue_pb2
from bxmesh.server.agent.letter_pages import newest, scan
from bxmesh.server.agent.letters import Letter
from bxmesh.server.errors import invalid_argument
from bxmesh.server.mutations import Mutation
from bxmesh.server.streams import DeadLetters, WorkQueue
from bxmesh.server.streams.dead_letters import Replayed
from bxmesh.server.tasks import TaskStore

__all__ = ["purge_letters", "replay_letters"]

_DEFAULT_LIMIT = 1000
_AT_ONCE = 64


async def replay_letters(
    queues: Sequence[WorkQueue],
    store: TaskStore,
    request: queue_pb2.ReplayDeadLettersRequest,
    mutation: Mutation,
    sees: Callable[[Letter], bool],
    put_back: Callable[[Letter], None],
) -> queue_pb2.ReplayDeadLettersResponse:
    """Puts letters that the caller sees back, oldest first; what comes meanwhile is left alone.

    `put_back` is told of each.
    """
    _require_something(request.filter)
    response = queue_pb2.ReplayDeadLettersResponse()
    if (first := await mutation.answered(response)) is not None:
        return first
    limit = request.limit or _DEFAULT_LIMIT
    replayed = sum([await mutation.count(queue.keys) for queue in queues])
    remaining = 0
    batch: list[Letter] = []

    async def replay() -> None:
        nonlocal replayed, remaining
        results = await asyncio.gather(*(_replay(letter, mutation.name, limit) for letter in batch))
        for letter, result in zip(batch, results, strict=True):
            if result is Replayed.DONE:
                put_back(letter)
        batch.clear()
        replayed += results.count(Replayed.DONE)
        kept = (Replayed.ENOUGH, Replayed.FULL, Replayed.FORGED)
        remaining += sum(map(results.count, kept))

    bound = await newest(queues)
    if bound is not None:
        async for letter in scan(queues, request.filter, newest_first=False, bound=bound):
            if not sees(letter) or not await letter.fits(request.filter, store):
                continue
            if letter.content is None or replayed + len(batch) >= limit:
                remaining += 1
                continue
            batch.append(letter)
            # What turns out to be gone, or has no room, makes place for what follows.
            if len(batch) == _AT_ONCE or replayed + len(batch) >= limit:
                await replay()
        await replay()
    response.replayed, response.remaining = replayed, remaining
    return await mutation.settle(response)


async def _replay(letter: Letter, mutation: str, limit: int) -> Replayed:
    return await DeadLetters(letter.queue).replay_stored(
        letter.stored,
        mutation=mutation,
        most=limit,
        capacity=letter.queue.options.max_depth,
    )


async def purge_letters(
    queues: Sequence[WorkQueue],
    store: TaskStore,
    request: queue_pb2.PurgeDeadLettersRequest,
    mutation: Mutation,
    sees: Callable[[Letter], bool],
) -> queue_pb2.PurgeDeadLettersResponse:
    """Deletes letters that the caller sees; what comes meanwhile is left alone."""
    _require_something(request.filter)
    response = queue_pb2.PurgeDeadLettersResponse()
    if (first := await mutation.answered(response)) is not None:
        return first
    purged = sum([await mutation.count(queue.keys) for queue in queues])
    batches: list[list[str]] = [[] for _ in queues]

    async def delete(index: int) -> int:
        names = batches[index].copy()
        batches[index].clear()
        if not names:
            return 0
        return await DeadLetters(queues[index]).purge(names, mutation=mutation.name)

    bound = await newest(queues)
    if bound is not None:
        async for letter in scan(queues, request.filter, newest_first=False, bound=bound):
            if sees(letter) and await letter.fits(request.filter, store):
                batches[letter.index].append(letter.stored.letter_id)
                if len(batches[letter.index]) == _AT_ONCE:
                    purged += await delete(letter.index)
        for index in range(len(queues)):
            purged += await delete(index)
    response.purged = purged
    return await mutation.settle(response)


def _require_something(wanted: queue_pb2.DeadLetterFilter) -> None:
    if not wanted.ListFields():
        raise invalid_argument("filter", "is empty; say at least one thing", reason="FILTER_EMPTY")
