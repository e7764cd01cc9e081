"""Whether what one step answers can be what the next one takes, by their JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bxmesh.server.chains.cel import Path
from bxmesh.server.chains.disjoint import Misfit, Schema, misfit, picked
from bxmesh.server.chains.graph import ChainGraph, Step
from bxmesh.server.chains.mappings import Mapping as FieldMapping
from bxmesh.server.errors import MeshError, invalid_argument

__all__ = ["check_fit"]


def check_fit(
    graph: ChainGraph,
    takes: Mapping[str, Any],
    answers: Mapping[str, Any],
    *,
    input_schema: Any = None,
    output_schema: Any = None,
    field: str = "chain",
) -> None:
    """Takes the JSON Schemas of the steps' inputs and outputs by step, as far as they are known,
    and the chain's own; raises MeshError INVALID_ARGUMENT (SCHEMAS_DO_NOT_FIT) that names step,
    field and both types.

    A step that was left out gives null: that is for the one that takes it to say.
    """

    def schema_of(path: Path) -> Schema:
        root = input_schema if path.step is None else answers.get(path.step)
        return picked(Schema.of(root), path.keys)

    for step in graph.steps.values():
        taken = Schema.of(takes.get(step.step_id))
        if step.mapping:
            problem = misfit(_built(step.mapping, schema_of), taken)
            if problem:
                place = _place(step.mapping, problem, f"{step.field}.input_mapping")
                raise _refused(place, f'step "{step.step_id}"', "its mapping", problem)
        else:
            problem = misfit(schema_of(_source(step)), taken)
            if problem:
                raise _refused(step.field, f'step "{step.step_id}"', _giver(step), problem)
    taken = Schema.of(output_schema)
    if graph.output_mapping:
        problem = misfit(_built(graph.output_mapping, schema_of), taken)
        if problem:
            place = _place(graph.output_mapping, problem, f"{field}.output_mapping")
            raise _refused(place, "the chain's output", "its mapping", problem)
    else:
        problem = misfit(schema_of(Path(graph.last, ())), taken)
        if problem:
            giver = f'step "{graph.last}"'
            raise _refused(f"{field}.output_schema", "the chain's output", giver, problem)


def _source(step: Step) -> Path:
    return Path(step.after[0] if step.after else None, ())


def _giver(step: Step) -> str:
    return f'step "{step.after[0]}"' if step.after else "the chain's input"


def _built(mapping: FieldMapping, schema_of: Any) -> Schema:
    """The schema of exactly what a mapping builds; of expressions that calculate, it says nothing."""
    root: dict[str, Any] = _object()
    for parts, expression in mapping.entries:
        place = root
        for part in parts[:-1]:
            place = _add(place, part, _object())
        _add(place, parts[-1], schema_of(expression.path) if expression.path else True)
    return Schema.of(root)


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def _add(place: dict[str, Any], name: str, schema: Any) -> Any:
    if name not in place["properties"]:
        place["properties"][name] = schema
        place["required"].append(name)
    return place["properties"][name]


def _place(mapping: FieldMapping, problem: Misfit, otherwise: str) -> str:
    for parts, expression in mapping.entries:
        if problem.path[: len(parts)] == parts:
            return expression.field
    return otherwise


def _refused(field: str, taker: str, giver: str, problem: Misfit) -> MeshError:
    path = ".".join(problem.path)
    where = f' at "{path}"' if path else ""
    return invalid_argument(
        field,
        f"{taker} takes {problem.taken}{where}, but gets {problem.produced} from {giver}",
        reason="SCHEMAS_DO_NOT_FIT",
        at=path,
        taken=problem.taken,
        produced=problem.produced,
    )
