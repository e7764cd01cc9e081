"""Which method takes what, and how failures are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import error_details_pb2

from bxmesh.client import (
    Agent,
    Drop,
    InvalidInput,
    Message,
    NotFound,
    Retry,
    RetryPolicy,
    TaskContext,
    on,
    task,
)
from bxmesh.client.agents import Capability, PayloadMismatch
from bxmesh.client.agents.capabilities import offered
from bxmesh.client.agents.failures import to_status
from bxmesh.client.agents.handlers import Handlers
from bxmesh.client.agents.retry import reason_of
from bxmesh.client.errors import from_status
from tests.sdk.agents import Greeting


class Base(Agent):
    @on("a.b")
    async def exact(self, message: Message) -> None: ...

    @on("a.*")
    @on("c.*")
    async def prefix(self, message: Message) -> None: ...

    @on("a.b.*")
    async def longer(self, message: Message) -> None: ...

    @task("geometry.minimize", model=Greeting, timeout=5)
    async def minimize(self, task: TaskContext, parameters: Greeting) -> None: ...

    @task("geometry.*")
    async def geometry(self, task: TaskContext) -> None: ...


class Derived(Base):
    async def prefix(self, message: Message) -> None: ...  # not a handler any more

    @on("a.b")
    async def own(self, message: Message) -> None: ...


def found(cls: type, kind: Any, what: str) -> str:
    handler = Handlers(cls).find(kind, what)
    return getattr(handler.function, "__qualname__", "") if handler else ""


def test_the_nearest_pattern_wins() -> None:
    assert found(Base, "message", "a.b") == "Base.exact"
    assert found(Base, "message", "a.x") == "Base.prefix"
    assert found(Base, "message", "c.x") == "Base.prefix"
    assert found(Base, "message", "a.b.c") == "Base.longer"
    assert found(Base, "message", "geometry.minimize") == ""
    assert found(Base, "task", "geometry.minimize") == "Base.minimize"
    assert found(Base, "task", "geometry.maps") == "Base.geometry"


def test_subclasses_replace_handlers() -> None:
    assert found(Derived, "message", "a.b") == "Derived.own"
    assert found(Derived, "message", "c.x") == ""
    assert found(Derived, "message", "a.b.c") == "Base.longer"
    assert found(Derived, "task", "geometry.minimize") == "Base.minimize"


def test_mistakes_are_told_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="async def"):

        @on("x")  # type: ignore[arg-type]
        def plain(self: Any, message: Message) -> None: ...

    with pytest.raises(TypeError, match="and the payload"):

        @on("x", model=Greeting)  # type: ignore[arg-type]
        async def too_few(self: Any, message: Message) -> None: ...

    with pytest.raises(TypeError, match="no payload"):

        @task("x")  # type: ignore[arg-type]
        async def too_many(self: Any, task: TaskContext, payload: Any) -> None: ...

    with pytest.raises(ValueError, match="asterisk"):
        on("*.x")
    with pytest.raises(ValueError, match="concurrency"):
        on("x", concurrency=0)
    with pytest.raises(TypeError, match="two handlers"):

        class Twice(Agent):
            @on("x")
            async def one(self, message: Message) -> None: ...

            @on("x")
            async def two(self, message: Message) -> None: ...

    with pytest.raises(InvalidInput, match="1 to 10000"):
        Agent("x", concurrency=0)


def test_tasks_are_capabilities() -> None:
    named = ["validation", Capability("geometry.minimize", description="Minimizes.")]
    capabilities = {one.name: one for one in offered(["validation"], Handlers(Base))}
    assert set(capabilities) == {"validation", "geometry.minimize"}
    message = capabilities["geometry.minimize"].to_message()
    assert message.input_schema.json_schema["required"][0] == "text"
    assert message.timeout.ToSeconds() == 5
    (own,) = (one for one in offered(named, Handlers(Base)) if one.name == "geometry.minimize")
    assert own.description == "Minimizes."
    assert Capability("x", output=error_details_pb2.ErrorInfo).to_message().output_schema == (
        type(message.output_schema)(protobuf_type="google.rpc.ErrorInfo")
    )


def test_the_state_model_may_be_a_type_argument() -> None:
    class Typed(Agent[Greeting]): ...

    class Further(Typed): ...

    assert Typed.state_model is Greeting
    assert Further.state_model is Greeting
    assert Base.state_model is None


def test_retry_policy() -> None:
    policy = RetryPolicy(
        max_attempts=3,
        initial_backoff=0.5,
        max_backoff=2.0,
        non_retryable=(ValueError, "AGENT_NOT_FOUND"),
    )
    assert policy.retryable(KeyError())
    assert not policy.retryable(UnicodeError())
    assert not policy.retryable(NotFound("gone", reason="AGENT_NOT_FOUND"))
    for failures in (1, 2, 3, 1000):
        bound = min(0.5 * 2 ** min(failures - 1, 30), 2.0)
        delays = [policy.delay(failures) for _ in range(200)]
        assert 0 <= min(delays) < bound / 2 < max(delays) <= bound
    message = policy.to_message()
    assert list(message.non_retryable_reasons) == ["VALUE_ERROR", "AGENT_NOT_FOUND"]
    assert message.max_backoff.ToSeconds() == 2


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ValueError("no"), "INTERNAL", "VALUE_ERROR"),
        (HTTPError := type("HTTPError", (Exception,), {})("x"), "INTERNAL", "HTTP_ERROR"),
        (Drop("no", reason="NO_USE"), "FAILED_PRECONDITION", "NO_USE"),
        (Retry(), "UNAVAILABLE", "RETRY_REQUESTED"),
        (PayloadMismatch("bad"), "INVALID_ARGUMENT", "PAYLOAD_MISMATCH"),
    ],
)
def test_failures_as_others_see_them(error: Exception, code: str, reason: str) -> None:
    seen = from_status(to_status(error))
    assert (seen.code.name, seen.reason) == (code, reason)
    assert seen.message == (str(error) if not hasattr(error, "message") else error.message)


def test_field_violations_survive() -> None:
    error = PayloadMismatch("bad", [("payload.x", "is missing")])
    assert from_status(to_status(error)).field_violations == (("payload.x", "is missing"),)
    assert reason_of(error) == "PAYLOAD_MISMATCH"
    long = "x" * 5000
    assert len(to_status(ValueError(long)).message) <= 800
    wordy = PayloadMismatch(long, [(long, long)] * 100)
    wordy.metadata = {f"{n}{long}": long for n in range(100)}
    assert to_status(wordy).ByteSize() < 8192
