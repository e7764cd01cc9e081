"""Behaviour by a language model, which pydantic-ai asks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bxmesh.client.conversations.question import ASKED, AgentAnswer
from bxmesh.client.definitions.parts import DefinitionLimits
from bxmesh.client.errors import BxmeshError
from bxmesh.client.functions.json_values import from_struct
from bxmesh.client.host.behaviours import Behaviour, reply_type
from bxmesh.client.host.conversing import question_of, say
from bxmesh.client.host.failures import exhausted, output_invalid, refused, unavailable
from bxmesh.client.host.models import Models, extra_missing
from bxmesh.client.host.schemas import misfit
from bxmesh.client.host.tools import Tools
from bxmesh.client.host.work import Reply, Work
from bxmesh.client.mesh import AsyncMesh
from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema

if TYPE_CHECKING:
    from pydantic_ai import Agent, RunUsage
    from pydantic_ai.exceptions import ModelAPIError
    from pydantic_ai.settings import ModelSettings

__all__ = ["ModelBehaviour"]

T = TypeVar("T")

_RETRIES = 2
_WRAPPED = "value"
_KEY_REFUSED = (401, 403)
_PASSING = (408, 409, 425, 429)
_MOST_SAID = 300
_LONGEST_PAUSE = 3600.0
_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _Output(NamedTuple):
    type: Any
    """What pydantic-ai is asked for."""
    wrapped: bool
    """Whether the answer is in a field of it, as models answer with objects only."""


class ModelBehaviour(Behaviour):
    """A model answers, with the definition's prompt, tools and limits."""

    def __init__(self, mesh: AsyncMesh, definition: pb.AgentDefinition, models: Models) -> None:
        super().__init__(mesh, definition)
        self._models = models
        self._tools = Tools(self.calls, list(definition.tools))
        self._limits = DefinitionLimits.from_message(definition.limits)
        self._agent: Agent[Work, Any] | None = None
        self._speaker: Agent[Work, Any] | None = None
        self._making = asyncio.Lock()
        self._output = _Output(str, wrapped=False)

    def input_schema(self, work_type: str) -> Schema:
        """What work of a type must be: questions of conversations are what they are."""
        return Schema() if work_type == ASKED else super().input_schema(work_type)

    async def answer(self, work: Work) -> Reply:
        """Asks the model until it has an answer that fits. Raises BxmeshError with the reason."""
        if work.type == ASKED:
            question = question_of(work)

            async def say_it(usage: RunUsage, options: dict[str, Any]) -> AgentAnswer:
                return await say(await self._voice(work), work, question, usage, **options)

            return Reply((await self._counted(work, say_it)).model_dump(exclude_defaults=True))
        agent = await self._ready(work)

        async def run(usage: RunUsage, options: dict[str, Any]) -> Any:
            result = await agent.run(
                work.payload if isinstance(work.payload, str) else _text(work.payload),
                deps=work,
                instructions=f"The request is of the type {work.type}.",
                usage=usage,
                **options,
            )
            return result.output

        output = await self._counted(work, run)
        value = output[_WRAPPED] if self._output.wrapped else output
        return Reply(value, reply_type(work.type))

    async def _counted(
        self, work: Work, run: Callable[[RunUsage, dict[str, Any]], Awaitable[T]]
    ) -> T:
        """Runs with the definition's tools and within its limits; what it took is counted."""
        from pydantic_ai import FunctionToolset, RunUsage, UsageLimits
        from pydantic_ai.exceptions import AgentRunError, UserError

        usage = RunUsage()
        options = {
            "toolsets": [FunctionToolset(await self._tools.current())],
            "usage_limits": UsageLimits(
                request_limit=None,
                tool_calls_limit=self._limits.max_tool_calls,
                total_tokens_limit=self._limits.max_tokens,
            ),
        }
        try:
            return await run(usage, options)
        except AgentRunError as error:
            raise self._failure(error, usage) from error
        except UserError as error:
            raise refused("MODEL_NOT_CONFIGURED", f"{error}"[:_MOST_SAID]) from error
        except BxmeshError:
            raise
        except Exception as error:
            # Providers answer what no client expects, and its words may be those of the answer.
            name = self.definition.model.model
            raise output_invalid(f"{name} has failed: {type(error).__name__}") from error
        finally:
            work.figures.input_tokens += usage.input_tokens
            work.figures.output_tokens += usage.output_tokens

    async def _voice(self, work: Work) -> Agent[Work, str]:
        """The agent that takes part in conversations, where what is said is plain text."""
        async with self._making:
            if self._speaker is None:
                self._speaker = await asyncio.to_thread(self._made, str)
            else:
                work.figures.cache_hits += 1
        return self._speaker

    def _made(self, output: Any) -> Agent[Work, Any]:
        try:
            from pydantic_ai import Agent
        except ModuleNotFoundError as error:
            raise extra_missing(error) from error
        definition = self.definition
        return Agent(
            self._models.get(definition.model),
            output_type=output,
            system_prompt=definition.system_prompt or (),
            deps_type=Work,
            name=definition.definition_id,
            model_settings=_settings(definition.model),
            retries=_RETRIES,
        )

    async def _ready(self, work: Work) -> Agent[Work, Any]:
        async with self._making:
            if self._agent is None:
                # To import what it takes may last longer than leases do.
                self._agent = await asyncio.to_thread(self._make)
            else:
                work.figures.cache_hits += 1
        return self._agent

    def _make(self) -> Agent[Work, Any]:
        try:
            from pydantic_ai import ModelRetry
            from pydantic_ai.exceptions import UserError
        except ModuleNotFoundError as error:
            raise extra_missing(error) from error
        definition = self.definition
        try:
            self._output = _output(definition)
        except UserError as error:
            raise refused("OUTPUT_SCHEMA_UNSUPPORTED", f"{error}"[:_MOST_SAID]) from error
        agent = self._made(self._output.type)

        @agent.output_validator
        def check(output: Any) -> Any:
            value = output[_WRAPPED] if self._output.wrapped else output
            if found := misfit(value, definition.output_schema, len(_text(value))):
                place, problem = found
                raise ModelRetry(f"The answer does not fit at {place or 'its root'}: {problem}")
            return output

        return agent

    def _failure(self, error: Exception, usage: RunUsage) -> BxmeshError:
        """What a run that failed is to callers.

        What providers say may hold parts of keys and of what they were asked: it is not repeated, as
        it would be in logs.
        """
        from pydantic_ai.exceptions import (
            ModelAPIError,
            ModelHTTPError,
            UnexpectedModelBehavior,
            UsageLimitExceeded,
        )

        name, most = self.definition.model.model, self._limits.max_tokens
        match error:
            case UsageLimitExceeded() if most is not None and usage.total_tokens > most:
                return exhausted("TOKEN_LIMIT", f"it took {usage.total_tokens} tokens of {most}")
            case UsageLimitExceeded():
                most_calls = self._limits.max_tool_calls
                return exhausted(
                    "TOOL_LIMIT", f"{name} wants more than {most_calls} calls of tools"
                )
            case ModelHTTPError() if error.status_code in _KEY_REFUSED:
                return refused(
                    "MODEL_KEY_REFUSED",
                    f"the server of {name} refuses this host's key ({error.status_code})",
                )
            case ModelHTTPError() if error.status_code < 500 and error.status_code not in _PASSING:
                return refused(
                    "MODEL_REJECTED", f"the server of {name} refuses the request: {_said(error)}"
                )
            case ModelAPIError() if type(error) is not ModelAPIError or error.in_stream:
                return unavailable(
                    f"{name} cannot be reached for now: {_said(error)}", _pause(error)
                )
            case UnexpectedModelBehavior():
                said = error.message[:_MOST_SAID]
                return output_invalid(f"{name} has no answer that fits: {said}")
        return output_invalid(f"{name} has failed: {type(error).__name__}")


def _said(error: ModelAPIError) -> str:
    """The status and the codes of an error, without its words."""
    status = getattr(error, "status_code", None) or type(error).__name__
    codes = (error.provider_error_code, error.provider_error_type)
    return " ".join([f"{status}", *(code for code in codes if code and _CODE.fullmatch(code))])


def _pause(error: ModelAPIError) -> float | None:
    """The seconds that a provider asks to wait for; None when it asks for nothing that is one."""
    seconds = error.retry_after
    return None if seconds is None or not 0 <= seconds <= _LONGEST_PAUSE else seconds


def _settings(model: pb.ModelSettings) -> ModelSettings:
    settings: dict[str, Any] = from_struct(model.extra)
    if model.HasField("temperature"):
        settings["temperature"] = model.temperature
    if model.HasField("top_p"):
        settings["top_p"] = model.top_p
    if model.max_tokens:
        settings["max_tokens"] = model.max_tokens
    made: Any = settings
    return made  # type: ignore[no-any-return]


def _output(definition: pb.AgentDefinition) -> _Output:
    from pydantic_ai import StructuredDict

    if not definition.output_schema.HasField("json_schema"):
        return _Output(str, wrapped=False)
    schema = from_struct(definition.output_schema.json_schema)
    wrapped = schema.get("type") != "object"
    if wrapped:
        # References are from the root of the document.
        definitions = schema.pop("$defs", None)
        schema = {"type": "object", "properties": {_WRAPPED: schema}, "required": [_WRAPPED]}
        if definitions:
            schema["$defs"] = definitions
    return _Output(StructuredDict(schema, name="answer"), wrapped)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
