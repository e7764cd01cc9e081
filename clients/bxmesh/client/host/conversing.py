"""A language model's part in a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.conversations.prompts import answer_of, instructions_of, prompt_of
from bxmesh.client.conversations.question import AgentAnswer, Question
from bxmesh.client.host.work import Work
from bxmesh.client.host.written import Written

if TYPE_CHECKING:
    from pydantic_ai import Agent, RunContext, RunUsage

__all__ = ["question_of", "say"]


def question_of(work: Work) -> Question:
    """Returns the question that a task is. Raises PayloadMismatch."""
    try:
        return Question.model_validate(work.payload)
    except ValidationError as error:
        raise PayloadMismatch(f"this is no question of a conversation: {error}") from None


async def say(
    agent: Agent[Work, str], work: Work, question: Question, usage: RunUsage, **options: Any
) -> AgentAnswer:
    """Lets a model answer; what it writes is told while it writes, where its provider streams.

    Raises what the agent's run raises.
    """
    async with AsyncExitStack() as stack:
        if work.tell is not None and question.kind == "answer":
            written = await stack.enter_async_context(Written(work.tell))
            options["event_stream_handler"] = _teller(written)
        result = await agent.run(
            prompt_of(question),
            deps=work,
            instructions=instructions_of(question),
            output_type=str,
            usage=usage,
            **options,
        )
    answer = answer_of(result.output, question)
    answer.model = result.response.model_name or ""
    answer.input_tokens, answer.output_tokens = usage.input_tokens, usage.output_tokens
    return answer


def _teller(written: Written) -> Any:
    from pydantic_ai import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

    async def hear(context: RunContext[Work], events: AsyncIterable[Any]) -> None:
        async for event in events:
            match event:
                case PartStartEvent(part=TextPart(content=text)) if text:
                    written.add(text)
                case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                    written.add(text)

    return hear
