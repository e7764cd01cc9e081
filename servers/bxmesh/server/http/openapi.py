"""The OpenAPI document, made of the operations and the models that check what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from bxmesh.server.http.bodies import MODEL, REFLECTIONS
from bxmesh.server.http.events import EVENT_STREAM
from bxmesh.server.http.operations import IDENTIFIER_LENGTH, Answer, Header, Operation
from bxmesh.server.http.problems import PROBLEM, Problem
from bxmesh.server.version import VERSION

__all__ = ["document"]

_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    400: "Something is wrong with the request.",
    401: "The request carries no valid key.",
    403: "The caller may not do this.",
    404: "Something that the request names is not there.",
    409: "The present state does not allow it.",
    429: "A quota is spent, or a queue is full.",
    500: "The mesh failed; its log has the cause under the trace id.",
    501: "This mesh does not offer it.",
    503: "The mesh is away, or too busy for now.",
    504: "It was not done in time.",
}
_BODY_PROBLEMS = {
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is of another kind.",
}
_TRACE = {
    "bxmesh-trace-id": {
        "description": "The trace of the request, 32 hexadecimal digits.",
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which a retry may succeed.",
        "schema": {"type": "string"},
    }
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Returns the document of some operations."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, schemas
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bxmesh",
            "version": VERSION,
            "summary": "Crystallography and conversations of agents, over HTTP.",
            "description": (
                "Every request carries a key of the mesh as `Authorization: Bearer KEY`, and may do "
                "what that key may do. Web sockets are at `/ws/{id}`."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key or token of the mesh.",
                }
            },
        },
        "tags": [
            {"name": name} for name in dict.fromkeys(operation.tag for operation in operations)
        ],
    }


class _Schemas:
    """The schemas of all models, which refer to each other by name."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        asked = [model for one in operations for model in (one.body, one.query) if model]
        told = [answer.model for one in operations for answer in one.answers.values()]
        inputs: list[tuple[Any, JsonSchemaMode, Any]] = []
        for mode, models in (("validation", asked), ("serialization", [*told, Problem])):
            for model in dict.fromkeys(models):
                adapter = TypeAdapter(model)
                inputs.append((model, mode, adapter))  # type: ignore[arg-type]
        found, extra = TypeAdapter.json_schemas(
            [(model, mode, adapter) for model, mode, adapter in inputs], ref_template=_REF
        )
        self._found: Mapping[tuple[Any, str], dict[str, Any]] = found  # type: ignore[assignment]
        self.definitions: dict[str, Any] = extra.get("$defs", {})

    def asked(self, model: type[BaseModel]) -> dict[str, Any]:
        """Returns the schema of what callers send."""
        return self._found[model, "validation"]

    def told(self, model: Any) -> dict[str, Any]:
        """Returns the schema of what callers get."""
        return self._found[model, "serialization"]

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Returns what a schema refers to."""
        name = schema.get("$ref", "").rpartition("/")[2]
        return self.definitions[name] if name else schema


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    written: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            **{
                str(status): _answer(answer, schemas)
                for status, answer in operation.answers.items()
            },
            **_problems(operation, schemas),
        },
    }
    if operation.description:
        written["description"] = operation.description
    if operation.open:
        written["security"] = []
    parameters = [*_path(operation), *_query(operation, schemas), *map(_header, operation.headers)]
    if parameters:
        written["parameters"] = parameters
    if operation.body is not None:
        written["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": {"schema": schemas.asked(operation.body)}},
        }
    if operation.files:
        written["requestBody"] = _files()
    return written


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    headers = {
        header.name: {"description": header.description, "schema": dict(header.schema)}
        for header in answer.headers
    }
    schema = schemas.told(answer.model)
    if answer.media_type == EVENT_STREAM:
        # Of each event, as of each line of JSON Lines.
        schema = _event(schema)
    return {
        "description": answer.description,
        "headers": {**_TRACE, **headers},
        "content": {answer.media_type: {"schema": schema}},
    }


def _event(data: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "id": text,
            "event": text,
            "data": {**text, "contentMediaType": "application/json", "contentSchema": data},
        },
        "required": ["data"],
    }


def _problems(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    told = dict(_PROBLEMS)
    if operation.open:
        told = {status: told[status] for status in (400, 500, 503)}
    if operation.method == "POST":
        told |= _BODY_PROBLEMS
    return {
        str(status): {
            "description": description,
            "headers": {**_TRACE, **(_RETRY_AFTER if status in (429, 503) else {})},
            "content": {PROBLEM: {"schema": schemas.told(Problem)}},
        }
        for status, description in sorted(told.items())
        if status not in operation.answers
    }


def _path(operation: Operation) -> list[dict[str, Any]]:
    if "{id}" not in operation.path:
        return []
    schema = {"type": "string", "minLength": 1, "maxLength": IDENTIFIER_LENGTH}
    return [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The conversation.",
            "schema": schema,
        }
    ]


def _query(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    whole = schemas.resolved(schemas.asked(operation.query))
    parameters = []
    for name, schema in whole["properties"].items():
        described = dict(schema)
        parameter = {
            "name": name,
            "in": "query",
            "required": name in whole.get("required", ()),
            "description": described.pop("description", ""),
            "schema": _without_null(described),
        }
        parameters.append(parameter)
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what is left out is not there."""
    choices = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(choices) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**choices[0], **rest}


def _header(header: Header) -> dict[str, Any]:
    return {
        "name": header.name,
        "in": "header",
        "required": False,
        "description": header.description,
        "schema": dict(header.schema),
    }


def _files() -> dict[str, Any]:
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {
        "type": "object",
        "properties": {MODEL: binary, REFLECTIONS: binary},
        "required": [MODEL],
    }
    content: dict[str, Any] = {
        kind: {"schema": {"type": "string"}}
        for kind in ("chemical/x-pdb", "chemical/x-mmcif", "text/plain")
    }
    content["application/octet-stream"] = {"schema": {}}
    content["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": content}
