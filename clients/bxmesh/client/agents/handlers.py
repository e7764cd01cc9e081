"""Handlers: which method of an agent takes which messages and tasks, and how."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from bxmesh.client.agents.messages import Message
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.task_context import TaskContext

__all__ = ["Handler", "Handlers", "on", "task"]

A = TypeVar("A")
M = TypeVar("M")
R = TypeVar("R")

_ATTRIBUTE = "__bxmesh_handlers__"
_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,126}\*?|[A-Za-z][A-Za-z0-9_.-]{0,127}|\*")


@dataclass(frozen=True, eq=False)
class Handler:
    """A method that takes messages or tasks of a type."""

    kind: Literal["message", "task"]
    """What it takes."""
    pattern: str
    """The type, or a prefix that ends in an asterisk."""
    function: Callable[..., Awaitable[Any]]
    """The method: (agent, message or task), and the payload when there is a model."""
    model: Any
    """What the payload is read as; None to leave it as it is."""
    timeout: float | None
    """How long it may take, in seconds; None for no limit but the work's own."""
    concurrency: int | None
    """How many run at once; None for no limit but the agent's."""
    retry: RetryPolicy | None
    """How often and when messages come again after a failure; None for the server's default."""


@overload
def on(
    message_type: str,
    *,
    model: type[M],
    timeout: float | None = None,
    concurrency: int | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[
    [Callable[[A, Message, M], Awaitable[None]]], Callable[[A, Message, M], Awaitable[None]]
]: ...


@overload
def on(
    message_type: str,
    *,
    model: None = None,
    timeout: float | None = None,
    concurrency: int | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[
    [Callable[[A, Message], Awaitable[None]]], Callable[[A, Message], Awaitable[None]]
]: ...


def on(
    message_type: str,
    *,
    model: Any = None,
    timeout: float | None = None,
    concurrency: int | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[[Any], Any]:
    """Makes a method the handler of a message type, or of a prefix that ends in an asterisk.

    With a model (a pydantic model, a protobuf message, or any type pydantic knows) the method gets
    the payload as its second argument; a payload that does not fit is a dead letter at once. When
    the method returns, the message is acknowledged, and its reply goes out; when it raises, the
    message comes again by the retry policy. Raise `Retry` or `Drop` to say which. The timeout is in
    seconds; at most `concurrency` of the handler run at once.
    """
    return _decorator("message", message_type, model, timeout, concurrency, retry)


@overload
def task(
    task_type: str,
    *,
    model: type[M],
    timeout: float | None = None,
    concurrency: int | None = None,
) -> Callable[
    [Callable[[A, TaskContext, M], Awaitable[R]]], Callable[[A, TaskContext, M], Awaitable[R]]
]: ...


@overload
def task(
    task_type: str,
    *,
    model: None = None,
    timeout: float | None = None,
    concurrency: int | None = None,
) -> Callable[
    [Callable[[A, TaskContext], Awaitable[R]]], Callable[[A, TaskContext], Awaitable[R]]
]: ...


def task(
    task_type: str,
    *,
    model: Any = None,
    timeout: float | None = None,
    concurrency: int | None = None,
) -> Callable[[Any], Any]:
    """Makes a method the handler of a task type, or of a prefix that ends in an asterisk.

    With a model the method gets the parameters as its second argument. What it returns is the
    task's result; what it raises is the task's error, and whether the task is tried again is for
    the retry policy of whoever assigned it to say. An agent offers the types of its tasks as
    capabilities by itself.
    """
    return _decorator("task", task_type, model, timeout, concurrency, None)


def _decorator(
    kind: Literal["message", "task"],
    pattern: str,
    model: Any,
    timeout: float | None,
    concurrency: int | None,
    retry: RetryPolicy | None,
) -> Callable[[Any], Any]:
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"{pattern!r} is neither the name of a type nor a prefix with an asterisk")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"a concurrency of {concurrency} would let nothing run; 1 is the least")

    def decorate(function: Any) -> Any:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} must be an `async def` to be a handler")
        takes = len(inspect.signature(function).parameters)
        wanted = 2 if model is None else 3
        if takes != wanted:
            what = "the payload" if wanted == 3 else "no payload, as no model is given"
            raise TypeError(f"{function.__qualname__} must take self, the {kind} and {what}")
        handler = Handler(kind, pattern, function, model, timeout, concurrency, retry)
        setattr(function, _ATTRIBUTE, (*getattr(function, _ATTRIBUTE, ()), handler))
        return function

    return decorate


class Handlers:
    """The handlers of a class of agents. A subclass's method takes its base's place."""

    def __init__(self, agent_class: type) -> None:
        self._by_pattern: dict[tuple[str, str], Handler] = {}
        seen: set[str] = set()
        for base in agent_class.__mro__:
            own: dict[tuple[str, str], Handler] = {}
            for name, attribute in vars(base).items():
                if name in seen:
                    continue
                for handler in getattr(attribute, _ATTRIBUTE, ()):
                    key = (handler.kind, handler.pattern)
                    if key in own:
                        raise TypeError(
                            f"{base.__qualname__} has two handlers for the {handler.kind} type "
                            f"{handler.pattern}"
                        )
                    own[key] = handler
            seen.update(vars(base))
            self._by_pattern = {**own, **self._by_pattern}

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_pattern.values())

    def find(self, kind: Literal["message", "task"], name: str) -> Handler | None:
        """Returns the handler of a type: by its name, otherwise by the longest prefix."""
        if handler := self._by_pattern.get((kind, name)):
            return handler
        fitting = [
            handler
            for handler in self
            if handler.kind == kind
            and handler.pattern.endswith("*")
            and name.startswith(handler.pattern[:-1])
        ]
        return max(fitting, key=lambda handler: len(handler.pattern), default=None)
