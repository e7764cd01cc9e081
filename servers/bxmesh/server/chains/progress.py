"""What comes next in a run, by the states of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bxmesh.agent.v1.chain_run_pb2 import RunState
from bxmesh.server.chains.graph import ChainGraph, Step

__all__ = ["Next", "next_steps"]

_UNSPECIFIED = RunState.RUN_STATE_UNSPECIFIED
_FAILED = {RunState.RUN_STATE_FAILED, RunState.RUN_STATE_TIMED_OUT}
_WAITING = {_UNSPECIFIED, RunState.RUN_STATE_PENDING}
_OPEN = _WAITING | {RunState.RUN_STATE_RUNNING}
# What waits behind a step that blocks is as good as skipped.
_LEFT_OUT = _WAITING | {RunState.RUN_STATE_SKIPPED}


@dataclass(frozen=True)
class Next:
    """What a run can do now, in the chain's order."""

    # All before them has ended: their conditions decide.
    ready: tuple[str, ...]
    # They can never run, as a step before them failed.
    skip: tuple[str, ...]
    # The steps that make the run fail.
    failed: tuple[str, ...]
    # Nothing is under way or waits.
    ended: bool


def next_steps(graph: ChainGraph, states: Mapping[str, RunState.ValueType]) -> Next:
    """Returns what comes next. A step without a state waits.

    A step blocks those after it when it failed or ran out of time and may not, when it was
    cancelled, or when it was left out since another blocked it. One that its own condition left out
    blocks nothing, nor does one that may fail. A step is skipped as soon as one before it blocks,
    with all that follow; it is ready when all before it have ended and none blocks.
    """
    blocking: set[str] = set()
    ready: list[str] = []
    skip: list[str] = []
    failed: list[str] = []
    open_steps = {name for name in graph.steps if states.get(name, _UNSPECIFIED) in _OPEN}
    for name, step in graph.steps.items():
        state = states.get(name, _UNSPECIFIED)
        blocked = not blocking.isdisjoint(step.after)
        fails = _fails(step, state)
        if fails:
            failed.append(name)
        if fails or (blocked and state in _LEFT_OUT):
            blocking.add(name)
        if state in _WAITING:
            if blocked:
                skip.append(name)
            elif open_steps.isdisjoint(step.after):
                ready.append(name)
    return Next(tuple(ready), tuple(skip), tuple(failed), not open_steps)


def _fails(step: Step, state: RunState.ValueType) -> bool:
    if state == RunState.RUN_STATE_CANCELLED:
        return True
    return state in _FAILED and not step.allow_failure
