"""Runs of chains, and how they ended."""

# ruff: noqa: N818 - ChainFailed is named like TaskFailed

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

import grpc

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.chains.chain import Chain
from bxmesh.client.errors import BxmeshError, FailedPrecondition, from_status
from bxmesh.client.functions.json_values import from_value
from bxmesh.client.names import EnumNames

__all__ = ["STATES", "ChainChange", "ChainFailed", "ChainRun", "RunState", "StepRun"]

RunState = Literal["pending", "running", "completed", "failed", "cancelled", "timed_out", "skipped"]

STATES = EnumNames(pb.RunState, "RUN_STATE_")


class ChainFailed(BxmeshError):
    """A run ended without an output; code and reason are those of what went wrong."""

    def __init__(self, run: ChainRun) -> None:
        error = run.error
        ends = {"cancelled": "was cancelled", "timed_out": "ran out of time"}
        super().__init__(
            error.message if error else f"run {run.run_id} {ends.get(run.state, 'failed')}",
            code=error.code if error else grpc.StatusCode.UNKNOWN,
            reason=error.reason if error else f"RUN_{run.state.upper()}",
            metadata={**(error.metadata if error else {}), "run_id": run.run_id},
            field_violations=error.field_violations if error else (),
            trace_id=run.trace_id,
        )
        self.run = run
        """The run as it ended."""

    @property
    def step(self) -> StepRun | None:
        """The step that made it fail; None when it was the run as a whole."""
        name = self.metadata.get("step", "")
        return next((step for step in self.run.steps if step.step_id == name), None)


@dataclass(frozen=True)
class StepRun:
    """One step of a run as it stood."""

    step_id: str
    """The step."""
    state: RunState
    """Where it stands."""
    input: Any
    """What it got; None before."""
    output: Any
    """What it answered; None before."""
    error: BxmeshError | None = field(compare=False)
    """Why it failed, or why its last attempt did."""
    attempts: int
    """How often it was tried."""
    agent_id: str
    """The agent that did it; empty for a function."""
    start_time: datetime | None
    """When it began first."""
    end_time: datetime | None
    """When it ended."""

    @classmethod
    def from_message(cls, message: pb.StepRun) -> StepRun:
        """Returns the step that the message describes."""
        return cls(
            step_id=message.step_id,
            state=cast(RunState, STATES.name(message.state)),
            input=from_value(message.input),
            output=from_value(message.output),
            error=from_status(message.error) if message.error.code else None,
            attempts=message.attempts,
            agent_id=message.agent_id,
            start_time=from_timestamp(message.start_time),
            end_time=from_timestamp(message.end_time),
        )

    @property
    def duration(self) -> float | None:
        """Seconds from begin to end; None unless it has both."""
        return _seconds(self.start_time, self.end_time)


@dataclass(frozen=True)
class ChainRun:
    """One run of a chain as it stood at one revision."""

    run_id: str
    """The name."""
    definition_id: str
    """The definition it is of; empty for a chain that came with the call."""
    definition_version: int
    """Its version; 0 likewise."""
    chain: Chain
    """The chain as it runs."""
    state: RunState
    """Where it stands."""
    steps: tuple[StepRun, ...]
    """Its steps in the chain's order; empty in lists."""
    input: Any
    """The input; None in lists."""
    output: Any
    """The output when it is completed; None in lists."""
    error: BxmeshError | None = field(compare=False)
    """Why it ended without an output."""
    owner: str
    """The identity that began it."""
    create_time: datetime | None
    """When it was begun."""
    end_time: datetime | None
    """When it ended."""
    revision: int
    """Grows with every change."""
    trace_id: str
    """The trace it belongs to, 32 hexadecimal digits."""
    message: pb.ChainRun = field(repr=False, compare=False)
    """The message of the contract."""

    @classmethod
    def from_message(cls, message: pb.ChainRun) -> ChainRun:
        """Returns the run that the message describes."""
        return cls(
            run_id=message.run_id,
            definition_id=message.definition_id,
            definition_version=message.definition_version,
            chain=Chain.from_message(message.chain),
            state=cast(RunState, STATES.name(message.state)),
            steps=tuple(map(StepRun.from_message, message.steps)),
            input=from_value(message.input),
            output=from_value(message.output),
            error=from_status(message.error) if message.error.code else None,
            owner=message.owner,
            create_time=from_timestamp(message.create_time),
            end_time=from_timestamp(message.end_time),
            revision=message.revision,
            trace_id=message.trace_id,
            message=message,
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("pending", "running")

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end; None before that."""
        return _seconds(self.create_time, self.end_time)

    @property
    def value(self) -> Any:
        """Its output. Raises ChainFailed when it has none, FailedPrecondition before its end."""
        if self.state == "completed":
            return self.output
        if self.done:
            raise ChainFailed(self)
        raise FailedPrecondition(
            f"run {self.run_id} is {self.state}: wait for its end",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            reason="RUN_NOT_ENDED",
        )


@dataclass(frozen=True)
class ChainChange:
    """One change of a run: of the run as a whole, first and last, or of one step."""

    revision: int
    """The revision to go on after."""
    run: ChainRun | None = None
    """The run as a whole."""
    step: StepRun | None = None
    """The step that has changed."""

    @classmethod
    def from_message(cls, message: pb.WatchChainResponse) -> ChainChange:
        """Returns the change that the message describes."""
        if message.HasField("step"):
            return cls(message.revision, step=StepRun.from_message(message.step))
        return cls(message.revision, run=ChainRun.from_message(message.run))


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()
