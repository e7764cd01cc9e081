"""What a chain says, checked: its steps in order, and what each gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from bxmesh.registry.v1 import chain_pb2
from bxmesh.server.chains import mappings
from bxmesh.server.chains.expressions import Expression, Scope
from bxmesh.server.chains.references import FunctionReference
from bxmesh.server.errors import MeshError, invalid_argument

__all__ = ["ChainGraph", "Step"]

_MOST_SOURCE = 1 << 16


@dataclass(frozen=True)
class Step:
    """One step, read."""

    message: chain_pb2.ChainStep
    field: str
    after: tuple[str, ...]
    condition: Expression | None
    mapping: mappings.Mapping
    function: FunctionReference | None

    @property
    def step_id(self) -> str:
        """Its name."""
        return self.message.step_id

    @property
    def allow_failure(self) -> bool:
        """Whether the chain goes on when it has failed."""
        return self.message.allow_failure


@dataclass(frozen=True)
class ChainGraph:
    """A chain that can run.

    The steps are in an order in which none comes before what it waits for. Values are JSON as
    Python has it, and `outputs` has the steps that answered: a step that was left out or failed has
    no output. Such a step is absent from expressions, `has(steps.a.output)` says so, and where its
    output as a whole is asked for, it is null.
    """

    steps: Mapping[str, Step]
    output_mapping: mappings.Mapping
    last: str

    @classmethod
    def of(cls, chain: chain_pb2.Chain, *, max_depth: int, field: str = "chain") -> ChainGraph:
        """Raises MeshError INVALID_ARGUMENT that names the field, and a cycle step by step. It
        compiles expressions: a server calls it in a thread."""
        _check_amount(chain, field)
        steps = _in_order(_read(chain, field), field)
        ancestors = _ancestors(steps)
        _check_depth(steps, max_depth, field)
        for step in steps.values():
            _check_input(step)
            condition = () if step.condition is None else (step.condition,)
            for expression in (*condition, *step.mapping.expressions):
                _check_reach(expression, ancestors[step.step_id], steps, step.step_id)
        output = mappings.Mapping.of(chain.output_mapping, f"{field}.output_mapping")
        for expression in output.expressions:
            _check_reach(expression, steps.keys(), steps, "")
        return cls(steps, output, _last(steps, output, field))

    def holds(self, step_id: str, input: Any, outputs: Mapping[str, Any]) -> bool:
        """Says whether a step that is ready shall run; raises MeshError EXPRESSION_FAILED."""
        condition = self.steps[step_id].condition
        return condition is None or condition.holds(Scope(input, outputs))

    def input_of(self, step_id: str, input: Any, outputs: Mapping[str, Any]) -> Any:
        """Returns what a step gets; raises MeshError EXPRESSION_FAILED."""
        step = self.steps[step_id]
        if step.mapping:
            return step.mapping.evaluate(Scope(input, outputs))
        return outputs.get(step.after[0]) if step.after else input

    def output_of(self, input: Any, outputs: Mapping[str, Any]) -> Any:
        """Returns what the chain answers; raises MeshError EXPRESSION_FAILED."""
        if self.output_mapping:
            return self.output_mapping.evaluate(Scope(input, outputs))
        return outputs.get(self.last)


def _check_amount(chain: chain_pb2.Chain, field: str) -> None:
    sources = [*chain.output_mapping.values(), *(step.condition for step in chain.steps)]
    for step in chain.steps:
        sources += step.input_mapping.values()
    if sum(map(len, sources)) > _MOST_SOURCE:
        raise invalid_argument(
            field,
            f"has expressions of more than {_MOST_SOURCE:,} characters in all",
            reason="CHAIN_TOO_LARGE",
        )


def _read(chain: chain_pb2.Chain, field: str) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    for index, message in enumerate(chain.steps):
        name, place = message.step_id, f"{field}.steps[{index}]"
        if name in steps:
            raise invalid_argument(
                f"{place}.step_id", f'"{name}" is there twice', reason="STEP_DUPLICATE", step=name
            )
        steps[name] = Step(
            message,
            place,
            tuple(dict.fromkeys(message.after)),
            Expression.compile(message.condition, f"{place}.condition")
            if message.condition
            else None,
            mappings.Mapping.of(message.input_mapping, f"{place}.input_mapping"),
            FunctionReference.parse(message.function, f"{place}.function")
            if message.HasField("function")
            else None,
        )
    for step in steps.values():
        for index, before in enumerate(step.after):
            if before not in steps:
                raise _unknown(f"{step.field}.after[{index}]", before)
    return steps


def _unknown(field: str, name: str) -> MeshError:
    return invalid_argument(
        field, f'there is no step "{name}"', reason="STEP_UNKNOWN", unknown_step=name
    )


def _in_order(steps: dict[str, Step], field: str) -> dict[str, Step]:
    sorter = TopologicalSorter({name: step.after for name, step in steps.items()})
    try:
        return {name: steps[name] for name in sorter.static_order()}
    except CycleError as error:
        cycle = " → ".join(error.args[1])
        raise invalid_argument(
            f"{field}.steps", f"wait for each other: {cycle}", reason="CHAIN_CYCLIC", cycle=cycle
        ) from None


def _ancestors(steps: dict[str, Step]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, step in steps.items():
        found[name] = set(step.after).union(*(found[before] for before in step.after))
    return found


def _check_depth(steps: dict[str, Step], most: int, field: str) -> None:
    depths: dict[str, int] = {}
    for name, step in steps.items():
        depths[name] = 1 + max((depths[before] for before in step.after), default=0)
    depth = max(depths.values(), default=0)
    if depth > most:
        raise invalid_argument(
            f"{field}.steps",
            f"has {depth} steps one after the other; at most {most} may be",
            reason="CHAIN_TOO_DEEP",
        )


def _check_input(step: Step) -> None:
    if len(step.after) > 1 and not step.mapping:
        raise invalid_argument(
            f"{step.field}.input_mapping",
            f'"{step.step_id}" comes after {_names(step.after)}: say what it gets of which',
            reason="INPUT_AMBIGUOUS",
            step=step.step_id,
        )


def _check_reach(
    expression: Expression, reach: Collection[str], steps: Mapping[str, Step], step_id: str
) -> None:
    for name in sorted(expression.steps):
        if name not in steps:
            raise _unknown(expression.field, name)
        if name not in reach:
            raise invalid_argument(
                expression.field,
                f'refers to "{name}", which need not have ended before "{step_id}" begins; '
                f'"after" must lead to it',
                reason="STEP_NOT_BEFORE",
                step=step_id,
            )


def _last(steps: dict[str, Step], output: mappings.Mapping, field: str) -> str:
    waited_for = {before for step in steps.values() for before in step.after}
    last = [name for name in steps if name not in waited_for]
    if len(last) != 1 and not output:
        raise invalid_argument(
            f"{field}.output_mapping",
            f"the chain ends with {_names(last)}: say what of them is its output",
            reason="OUTPUT_AMBIGUOUS",
        )
    return last[0] if len(last) == 1 else ""


def _names(names: Collection[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
