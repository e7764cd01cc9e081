"""Script calls that are made in the same moment share one round trip."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from bxmesh.server.streams.scripts import Script

Argument = str | bytes | int

_LARGEST_BATCH = 256


class _Call(NamedTuple):
    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    answer: asyncio.Future[Any]

    @property
    def command(self) -> tuple[Argument, ...]:
        return "EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments


class ScriptBatcher:
    """Calls scripts; while one round trip is under way, further calls gather for the next."""

    def __init__(self, redis: Redis, gather_seconds: float = 0.0) -> None:
        """Takes how long the first call of a batch waits for more, for calls without hurry."""
        self._redis = redis
        self._gather_seconds = gather_seconds
        self._waiting: deque[_Call] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def call(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Runs a script and returns its answer; raises what Redis raises."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(script, keys, arguments, answer))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await answer

    async def _flush(self) -> None:
        while self._waiting:
            if self._gather_seconds:
                await self._gather()
            batch = self._next_batch()
            if not batch:
                return
            try:
                answers = await self._run(batch)
            except asyncio.CancelledError:
                self._cancel(batch)
                raise
            except Exception as error:
                answers = [error] * len(batch)
            for call, answer in zip(batch, answers, strict=True):
                if call.answer.done():
                    continue
                if isinstance(answer, Exception):
                    call.answer.set_exception(answer)
                else:
                    call.answer.set_result(answer)

    def _next_batch(self) -> list[_Call]:
        batch: list[_Call] = []
        while self._waiting and len(batch) < _LARGEST_BATCH:
            call = self._waiting.popleft()
            # Who was cancelled while it waited may have closed Redis by now.
            if not call.answer.done():
                batch.append(call)
        return batch

    async def _gather(self) -> None:
        try:
            await asyncio.sleep(self._gather_seconds)
        except asyncio.CancelledError:
            self._cancel(())
            raise

    def _cancel(self, batch: Sequence[_Call]) -> None:
        for call in (*batch, *self._waiting):
            call.answer.cancel()
        self._waiting.clear()

    async def _run(self, batch: Sequence[_Call]) -> list[Any]:
        answers = await self._send(batch)
        # A restarted server has forgotten the scripts; those calls did nothing, so they may be
        # repeated.
        forgotten = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if forgotten:
            for source in {batch[i].script.source for i in forgotten}:
                await self._redis.script_load(source)
            repeated = await self._send([batch[i] for i in forgotten])
            for i, answer in zip(forgotten, repeated, strict=True):
                answers[i] = answer
        return answers

    async def _send(self, batch: Sequence[_Call]) -> list[Any]:
        if len(batch) == 1:
            try:
                redis: Any = self._redis
                return [await redis.execute_command(*batch[0].command)]
            except NoScriptError as error:
                return [error]
        pipeline = self._redis.pipeline(transaction=False)
        for call in batch:
            pipeline.execute_command(*call.command)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers
