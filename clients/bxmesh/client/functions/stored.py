"""Functions as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict, cast

from pydantic import TypeAdapter

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client.agents.times import from_timestamp, to_duration
from bxmesh.client.bundles import VISIBILITIES, Visibility
from bxmesh.client.functions.json_values import from_struct, to_struct
from bxmesh.client.functions.source import Code, source_of
from bxmesh.client.names import EnumNames
from bxmesh.registry.v1.schema_pb2 import Schema

__all__ = [
    "Engine",
    "Function",
    "FunctionLimits",
    "FunctionOptions",
    "SchemaSource",
    "schema_message",
    "to_message",
]

Engine = Literal["sandbox", "container"]
SchemaSource = Mapping[str, Any] | type[Any]
"""A JSON Schema, or what pydantic makes one of: a model, a TypedDict, `list[int]`."""

ENGINES = EnumNames(pb.FunctionEngine, "FUNCTION_ENGINE_")


@dataclass(frozen=True)
class FunctionLimits:
    """What one execution may use; None is the server's default."""

    timeout: float | None = None
    """Seconds from begin to end, what it waits for included."""
    memory: int | None = None
    """Bytes that its values may take."""
    recursion: int | None = None
    """Calls within calls."""
    output: int | None = None
    """Bytes that it prints and returns together."""

    @classmethod
    def from_message(cls, message: pb.FunctionLimits) -> FunctionLimits:
        """Returns the limits that the message holds."""
        return cls(
            timeout=message.timeout.ToNanoseconds() / 1e9 or None,
            memory=message.max_memory_bytes or None,
            recursion=message.max_recursion_depth or None,
            output=message.max_output_bytes or None,
        )

    def to_message(self) -> pb.FunctionLimits:
        """Returns the limits as a message."""
        return pb.FunctionLimits(
            timeout=to_duration(self.timeout),
            max_memory_bytes=self.memory or 0,
            max_recursion_depth=self.recursion or 0,
            max_output_bytes=self.output or 0,
        )


class FunctionOptions(TypedDict, total=False):
    """What can be said about a function besides its name and code."""

    entry_point: str
    """What is called: the Python function that is given, or `main`."""
    description: str
    """For people and models, at most 4096 characters."""
    input_schema: SchemaSource | None
    """What it takes; of a Python function by default what its annotations say."""
    output_schema: SchemaSource | None
    """What it answers; likewise."""
    limits: FunctionLimits | None
    """What an execution may use."""
    imports: Iterable[str]
    """What it may import instead of the server's defaults."""
    host_functions: Iterable[str]
    """What it may call of the mesh, for example mesh.request."""
    example: object
    """An input that it must be able to handle, tried before it is stored."""
    engine: Engine | None
    """What executes it; the sandbox."""
    visibility: Visibility | None
    """Who sees it: owner, team or all."""
    labels: Mapping[str, str]
    """For the caller's own use."""
    version: str
    """Such as 1.4.0; the server counts on."""


@dataclass(frozen=True)
class Function:
    """Stored code in one version."""

    name: str
    """The name, for example geometry.score."""
    version: str
    """Such as 1.0.0; empty when it was only checked."""
    code: str
    """The source text; empty in lists."""
    entry_point: str
    """The function in it that is called."""
    description: str
    """For people and models."""
    input_schema: dict[str, Any] | None
    """A JSON Schema of what it takes; None where anything goes."""
    output_schema: dict[str, Any] | None
    """A JSON Schema of what it answers; None where anything goes."""
    is_async: bool
    """Whether it is a coroutine."""
    limits: FunctionLimits
    """What an execution may use."""
    allowed_imports: tuple[str, ...]
    """What it may import; empty means the server's defaults."""
    host_functions: tuple[str, ...]
    """What it may call of the mesh."""
    example: dict[str, Any] | None
    """An input that it was tried on."""
    engine: Engine
    """What executes it."""
    visibility: Visibility
    """Who sees it."""
    labels: dict[str, str]
    """For the owner's own use."""
    digest: str
    """sha256: and the digest of all that decides what it does."""
    aliases: tuple[str, ...]
    """Names of this version."""
    owner: str
    """The identity that stored it."""
    create_time: datetime | None
    """When this version was stored."""
    message: pb.Function = field(repr=False, compare=False)
    """The message of the contract."""
    existed: bool = field(default=False, compare=False)
    """Whether `create` found the same content there already."""

    @classmethod
    def from_message(cls, message: pb.Function, *, existed: bool = False) -> Function:
        """Returns the function that the message describes."""
        example = message.example_input if message.HasField("example_input") else None
        return cls(
            name=message.name,
            version=message.version,
            code=message.code,
            entry_point=message.entry_point,
            description=message.description,
            input_schema=from_schema(message.input_schema),
            output_schema=from_schema(message.output_schema),
            is_async=message.is_async,
            limits=FunctionLimits.from_message(message.limits),
            allowed_imports=tuple(message.allowed_imports),
            host_functions=tuple(message.host_functions),
            example=None if example is None else from_struct(example),
            engine=cast(Engine, ENGINES.name(message.engine or pb.FUNCTION_ENGINE_SANDBOX)),
            visibility=cast(Visibility, VISIBILITIES.name(message.visibility or 1)),
            labels=dict(message.labels),
            digest=message.digest,
            aliases=tuple(message.aliases),
            owner=message.owner,
            create_time=from_timestamp(message.create_time),
            message=message,
            existed=existed,
        )


def to_message(name: str, code: Code, options: FunctionOptions) -> pb.Function:
    """Returns what is to be stored as a message. Raises InvalidInput for what cannot be."""
    host_functions = tuple(options.get("host_functions", ()))
    source = source_of(code, options.get("entry_point", ""), host_functions)
    limits, example = options.get("limits"), options.get("example")
    return pb.Function(
        name=name,
        code=source.text,
        entry_point=source.entry_point,
        description=options.get("description", ""),
        input_schema=schema_message(
            options.get("input_schema", source.input_schema), "input_schema"
        ),
        output_schema=schema_message(
            options.get("output_schema", source.output_schema), "output_schema"
        ),
        is_async=source.is_async,
        limits=None if limits is None else limits.to_message(),
        allowed_imports=options.get("imports", ()),
        host_functions=host_functions,
        example_input=None if example is None else to_struct(example, "example"),
        engine=ENGINES.number(options.get("engine")),
        visibility=VISIBILITIES.number(options.get("visibility")),
        labels=options.get("labels", {}),
        version=options.get("version", ""),
    )


def schema_message(source: SchemaSource | None, field: str) -> Schema | None:
    """Returns a JSON Schema, or that of a type, as a message; None for none."""
    if source is None:
        return None
    if not isinstance(source, Mapping):
        mode: Any = "validation" if field == "input_schema" else "serialization"
        source = TypeAdapter(source).json_schema(mode=mode)
    return Schema(json_schema=to_struct(source, field))


def from_schema(message: Schema) -> dict[str, Any] | None:
    """Returns the JSON Schema of a message; None where anything goes."""
    return from_struct(message.json_schema) if message.HasField("json_schema") else None
