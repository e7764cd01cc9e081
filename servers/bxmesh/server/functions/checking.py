"""What a function must pass before it is stored."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument
from bxmesh.server.functions.engine import Call, Engine, Outcome, failed, over_limit
from bxmesh.server.functions.limits import require_allowed, tightest
from bxmesh.server.functions.places import Places
from bxmesh.server.functions.source import DEFAULT_IMPORTS, Problem, problems_of
from bxmesh.server.json_schemas import Misfit, SchemaError, find_misfit, require_usable
from bxmesh.server.json_values import (
    NotJsonError,
    TooLargeError,
    json_aside,
    value_aside,
)

__all__ = ["Checks", "checked_input", "checked_output"]

_MOST_PROBLEMS = 10
_TRIAL_SECONDS = 10.0
# What is read in lists must fit into a message with room to spare.
_MOST_BYTES = 2 << 20
# The sandbox takes it, and its type checker does not.
_FUTURE = re.compile(r"^from __future__ import [\w ,]+", re.MULTILINE)


class Checks:
    """Checks functions with the engines that there are."""

    def __init__(
        self,
        engines: Mapping[pb.FunctionEngine.ValueType, Engine],
        host_functions: Collection[str],
        places: Places,
    ) -> None:
        self._engines = engines
        self._host_functions = frozenset(host_functions)
        self._places = places

    def engine(self, function: pb.Function) -> Engine:
        """Returns what executes a function; raises MeshError FAILED_PRECONDITION without it."""
        engine = self._engines.get(function.engine or pb.FUNCTION_ENGINE_SANDBOX)
        if engine is None:
            raise failed_precondition(
                "This server has no containers: bubblewrap (bwrap) is not there. Use the sandbox.",
                reason="ENGINE_UNAVAILABLE",
                subject="function.engine",
            )
        return engine

    async def check(self, function: pb.Function, owner: str) -> None:
        """Raises MeshError INVALID_ARGUMENT, whose violations name the fields, for a function that
        does not parse, import, type or run on its example as it says."""
        engine = self.engine(function)
        if (size := function.ByteSize()) > _MOST_BYTES:
            raise invalid_argument(
                "function", f"has {size} bytes; at most {_MOST_BYTES} may be", reason="TOO_LARGE"
            )
        require_allowed(function.limits, "function.limits")
        schemas = [
            Problem("SCHEMA_INVALID", field, str(problem))
            for field in ("input_schema", "output_schema")
            if (problem := await asyncio.to_thread(_schema_problem, function, field))
        ]
        if schemas:
            _refuse(schemas)
        unknown = [
            Problem(
                "HOST_FUNCTION_UNKNOWN",
                f"host_functions[{index}]",
                f"{name} is none of {', '.join(sorted(self._host_functions))}",
            )
            for index, name in enumerate(function.host_functions)
            if name not in self._host_functions
        ]
        problems = unknown + await asyncio.to_thread(
            problems_of,
            function.code,
            function.entry_point,
            is_async=function.is_async,
            imports=function.allowed_imports or DEFAULT_IMPORTS,
            host_functions=function.host_functions,
            schema=_content(function.input_schema),
        )
        if problems:
            _refuse(problems)
        await self._try(function, engine, owner)

    async def _try(self, function: pb.Function, engine: Engine, owner: str) -> None:
        """Checks the types, and runs the example as far as the first call of the host."""
        example = function.HasField("example_input")
        arguments = await checked_input(
            function, function.example_input, "function.example_input" if example else ""
        )
        limits = tightest(function.limits, pb.FunctionLimits())
        if limits.timeout > _TRIAL_SECONDS:
            shorter = pb.FunctionLimits()
            shorter.timeout.FromMilliseconds(int(_TRIAL_SECONDS * 1000))
            limits = tightest(function.limits, shorter)
        reached = False

        async def reach(*args: Any, **kwargs: Any) -> NoReturn:
            nonlocal reached
            reached = True
            raise failed("TRIAL", "This is a trial, in which nothing is called.")

        code = _FUTURE.sub("pass", function.code)
        async with self._places.taken(owner) as place:
            outcome = await engine.run(
                Call(
                    code if example else f"{code}\ndef bxmesh_nothing(): pass",
                    function.entry_point if example else "bxmesh_nothing",
                    function.is_async and example,
                    arguments,
                    limits,
                    place,
                    dict.fromkeys(function.host_functions, reach),
                    checked=True,
                )
            )
        if outcome.error is not None and not reached:
            self._refuse_trial(outcome, "example_input" if example else "code")
        if example and not reached:
            try:
                await checked_output(function, outcome.value, limits.output)
            except MeshError as error:
                _refuse([Problem("TRIAL_FAILED", "example_input", error.message)])

    @staticmethod
    def _refuse_trial(outcome: Outcome, field: str) -> NoReturn:
        error = outcome.error
        assert error is not None
        if error.reason in ("CODE_INVALID", "TYPES_INVALID"):
            _refuse([Problem(error.reason, "code", error.message)])
        _refuse([Problem("TRIAL_FAILED", field, error.message)])


async def checked_input(function: pb.Function, arguments: Struct, field: str) -> dict[str, Any]:
    """Returns arguments as Python has them; raises MeshError INVALID_ARGUMENT (SCHEMA_MISMATCH),
    which names the place below `field`, when they do not fit."""
    size = arguments.ByteSize()
    values: dict[str, Any] = await json_aside(arguments)
    if field and (misfit := await _misfit(function.input_schema, values, size)):
        path, description = misfit
        raise invalid_argument(f"{field}{path}", description[:200], reason="SCHEMA_MISMATCH")
    return values


async def checked_output(function: pb.Function, value: object, most_bytes: int) -> Any:
    """Returns what a function returned as a Value; raises MeshError ABORTED (OUTPUT_INVALID) for
    what is no JSON, and what does not fit (OUTPUT_MISMATCH)."""
    try:
        result = await value_aside(value, most_bytes)
    except TooLargeError as error:
        raise over_limit(
            "OUTPUT_LIMIT", f"What it returned, with what it printed, {error.problem}."
        ) from None
    except NotJsonError as error:
        raise failed("OUTPUT_INVALID", f"What it returned cannot be answered: {error}.") from None
    # Numbers take more in a message than they do written down, and answers must fit into one.
    if result.ByteSize() > most_bytes:
        raise over_limit(
            "OUTPUT_LIMIT",
            f"What it returned, with what it printed, is larger than {most_bytes} bytes.",
        )
    if problem := await _misfit(
        function.output_schema, await json_aside(result), result.ByteSize()
    ):
        path, description = problem
        raise failed("OUTPUT_MISMATCH", f"output{path}: {description}", path=f"output{path}")
    return result


async def _misfit(schema: Schema, value: Any, size: int) -> Misfit | None:
    if schema.WhichOneof("kind") != "json_schema":
        return None
    try:
        # In a thread, as neither is ours.
        return await asyncio.to_thread(find_misfit, value, schema, size)
    except SchemaError as error:
        return Misfit("", f"cannot be checked: the schema fails ({error})")


def _schema_problem(function: pb.Function, field: str) -> str:
    schema: Schema = getattr(function, field)
    match schema.WhichOneof("kind"):
        case "protobuf_type":
            return "must be a JSON Schema: functions take and return JSON"
        case "json_schema":
            try:
                require_usable(schema)
            except SchemaError as error:
                return str(error)
            if field == "input_schema" and _content(schema) != {}:
                kind = (_content(schema) or {}).get("type")
                if kind != "object":
                    return (
                        f'must have the type "object", whose fields are the arguments, not {kind!r}'
                    )
    return ""


def _content(schema: Schema) -> dict[str, Any] | None:
    if schema.WhichOneof("kind") != "json_schema":
        return None
    content: dict[str, Any] = json_format.MessageToDict(schema.json_schema)
    return content


def _refuse(problems: list[Problem]) -> NoReturn:
    first = problems[0]
    raise MeshError(
        grpc.StatusCode.INVALID_ARGUMENT,
        first.reason,
        f"function.{first.field}: {first.description}"
        + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
        field_violations=[
            (f"function.{problem.field}", problem.description)
            for problem in problems[:_MOST_PROBLEMS]
        ],
    )
