"""The state of an agent in its own hands: read from memory, written to the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Generic, TypeVar

import grpc
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.agents.states import AgentState
from bxmesh.client.errors import FailedPrecondition
from bxmesh.client.names import invalid

__all__ = ["OwnState"]

S = TypeVar("S")


class OwnState(Generic[S]):
    """What an agent keeps across restarts, as its model or a dict."""

    def __init__(self, mesh: AgentCalls, agent_id: str, model: type[S]) -> None:
        self._mesh = mesh
        self._agent_id = agent_id
        self._adapter: TypeAdapter[Any] = TypeAdapter(model)
        self._revision = 0
        self._changing = asyncio.Lock()
        self._value: S

    @property
    def value(self) -> S:
        """The state as this process knows it."""
        return self._value

    async def load(self) -> None:
        """Reads the state. Raises InvalidInput when what is stored does not fit the model."""
        self._take(await self._mesh.state(self._agent_id))

    async def set(self, fields: Mapping[str, Any]) -> S:
        """Sets some fields. Raises FailedPrecondition (ABORTED) when another has changed the state.

        What the other has made of it is read then.
        """
        changed = self._checked({**self._plain(self._value), **to_jsonable_python(dict(fields))})
        plain = self._plain(changed)
        patch = {name: plain.get(name) for name in fields}
        try:
            state = await self._mesh.update_state(
                self._agent_id, patch, expected_revision=self._revision
            )
        except FailedPrecondition as error:
            if error.code is grpc.StatusCode.ABORTED:
                await self.load()
            raise
        self._take(state)
        return self._value

    async def change(self, change: Callable[[S], S | None]) -> S:
        """Changes the state by a function, which is called again on the new one when another was faster."""
        async with self._changing:
            while True:
                draft = deepcopy(self._value)
                result = change(draft)
                new = self._plain(self._checked(draft if result is None else result))
                revision = self._revision
                try:
                    state = await self._mesh.update_state(
                        self._agent_id, new, mask=(), expected_revision=revision
                    )
                except FailedPrecondition as error:
                    if error.code is not grpc.StatusCode.ABORTED:
                        raise
                    await self.load()
                else:
                    self._take(state)
                    return self._value

    def _take(self, state: AgentState) -> None:
        # Answers may overtake each other; the newest counts.
        if state.revision >= self._revision:
            self._value = self._checked(state.value)
            self._revision = state.revision

    def _checked(self, value: Any) -> S:
        try:
            checked: S = self._adapter.validate_python(self._plain(value))
        except ValidationError as error:
            raise invalid("state", f"the state does not fit its model: {error}") from error
        return checked

    def _plain(self, value: Any) -> dict[str, Any]:
        plain: dict[str, Any] = (
            value
            if isinstance(value, dict)
            else self._adapter.dump_python(value, mode="json", by_alias=True)
        )
        return plain
