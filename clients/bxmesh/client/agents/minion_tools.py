"""What minions can do: functions, stored functions, and what others in the mesh offer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_type_hints

from pydantic.errors import PydanticUserError

from bxmesh.client.agents import payloads
from bxmesh.client.agents.capabilities import Capability
from bxmesh.client.agents.minion_context import BlockingTaskContext, ToolContext
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.agents.task_failures import result_of
from bxmesh.client.errors import BxmeshError

__all__ = ["Tool", "marked", "tool", "tool_of"]

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "__bxmesh_tool__"
# What the mesh has refused it refuses again.
_RETRY = RetryPolicy(non_retryable=("TASK_CYCLE", "TASK_TOO_DEEP", "PERMISSION_MISSING"))


@dataclass(frozen=True, eq=False)
class Tool:
    """One thing that a minion can do."""

    capability: Capability
    """What it is to others."""
    do: Callable[[ToolContext], Awaitable[object]]
    """Does a task and returns its result."""


@dataclass(frozen=True)
class _Mark:
    capability: str
    description: str
    timeout: float | None


def tool(
    capability: str, *, description: str = "", timeout: float | None = None
) -> Callable[[F], F]:
    """Makes a function, or a method of a Minion, the tool for a capability.

    The description is by default the first line of its docstring; the timeout, in seconds, is that
    of a task that says none.
    """

    def mark(function: F) -> F:
        setattr(function, _ATTRIBUTE, _Mark(capability, description, timeout))
        return function

    return mark


def marked(function: object) -> str:
    """Returns the capability that a function was marked with by `@tool`; empty without one."""
    mark: _Mark | None = getattr(function, _ATTRIBUTE, None)
    return mark.capability if mark else ""


def tool_of(capability: str, source: Callable[..., Any] | str) -> Tool:
    """Returns the tool that a function, "function@version" or another capability makes.

    Raises TypeError for a function that cannot be called by keywords, or whose annotations make no
    JSON Schema.
    """
    if not isinstance(source, str):
        return _of_function(capability, source)
    name, stored, version = source.partition("@")
    if stored:
        return Tool(
            Capability(capability, f"Executes the stored function {source}."),
            partial(_execute, name, version),
        )
    return Tool(
        Capability(capability, f"Has {source} done by another agent."), partial(_delegate, source)
    )


async def _execute(name: str, version: str, context: ToolContext) -> object:
    execution = await context.mesh.functions.execute(
        name,
        context.parameters,
        version=version,
        durable=False,
        on_behalf_of=context.task.on_behalf_of,
        parent_task_id=context.id,
    )
    return execution.value


async def _delegate(capability: str, context: ToolContext) -> object:
    child = await context.assign(capability, context.task.message.spec.parameters, retry=_RETRY)
    told = child.progress
    try:
        async with aclosing(context.mesh.watch_task(child.task_id)) as changes:
            async for child in changes:
                if not child.done and child.progress != told:
                    told = child.progress
                    await context.progress(told.percent, told.message)
        return result_of(child)
    finally:
        if not child.done:
            why = f"the task {context.id}, on whose behalf it was done, was stopped"
            with suppress(BxmeshError):
                await context.mesh.cancel_task(child.task_id, why, cancel_children=True)


def _of_function(name: str, function: Callable[..., Any]) -> Tool:
    if not inspect.isroutine(function):
        raise TypeError(f"{function!r} is no function or method")
    asynchronous = inspect.iscoroutinefunction(function)
    hints = get_type_hints(function, include_extras=True)
    takes, context_name = _parameters(function, hints, asynchronous=asynchronous)
    mark: _Mark = getattr(function, _ATTRIBUTE, None) or _Mark("", "", None)
    gives = hints.get("return")
    capability = Capability(
        name,
        mark.description or (inspect.getdoc(function) or "").partition("\n")[0][:1024],
        input=takes,
        output=None if gives is type(None) else gives,
        timeout=mark.timeout,
    )
    try:
        capability.to_message()
    except PydanticUserError as error:
        raise TypeError(
            f"the annotations of {function.__name__} make no schema: {error}"
        ) from error

    async def do(context: ToolContext) -> object:
        arguments = {} if takes is None else payloads.read(context.payload, takes)
        if asynchronous:
            if context_name:
                arguments[context_name] = context
            return await function(**arguments)
        if context_name:
            arguments[context_name] = BlockingTaskContext.of(context)
        # In what the task is traced by.
        call = partial(copy_context().run, partial(function, **arguments))
        return await asyncio.get_running_loop().run_in_executor(context.threads, call)

    return Tool(capability, do)


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any], *, asynchronous: bool
) -> tuple[Any, str]:
    """Returns what pydantic reads arguments with, None without any, and which one is the context."""
    kept: list[inspect.Parameter] = []
    context_name = ""
    for one in inspect.signature(function).parameters.values():
        hint = hints.get(one.name, Any)
        if hint in (TaskContext, BlockingTaskContext):
            wanted = TaskContext if asynchronous else BlockingTaskContext
            if hint is not wanted:
                raise TypeError(f"{function.__name__} must take its task as {wanted.__name__}")
            context_name = one.name
        elif one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
            raise TypeError(
                f"{function.__name__} is called by keywords: it must not have parameters before / or *"
            )
        else:
            kind = one.kind if one.kind is one.VAR_KEYWORD else one.KEYWORD_ONLY
            kept.append(one.replace(kind=kind, annotation=hint))
    if not kept:
        return None, context_name

    def arguments(**given: Any) -> dict[str, Any]:
        return given

    # Pydantic checks a call of this, and hands over what it has made of it.
    vars(arguments).update(__signature__=inspect.Signature(kept))
    arguments.__annotations__ = {one.name: one.annotation for one in kept}
    arguments.__name__ = f"call of {function.__name__}"
    return arguments, context_name
