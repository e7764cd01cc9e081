"""A language model's part in a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.conversations.prompts import answer_of, instructions_of, prompt_of
from bxmesh.client.conversations.question import MOST_NAME, AgentAnswer, Question
from bxmesh.client.host.failures import output_invalid
from bxmesh.client.host.work import Work
from bxmesh.client.host.written import Written

if TYPE_CHECKING:
    from pydantic_ai import Agent, AgentRunResult, RunContext, RunUsage

__all__ = ["question_of", "say"]

# Sixteen times what counts: whoever writes more than that does not come to an end.
_MOST_WRITTEN = 1 << 20


def question_of(work: Work) -> Question:
    """Returns the question that a task is. Raises PayloadMismatch."""
    try:
        return Question.model_validate(work.payload)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise PayloadMismatch(
            f"this is no question of a conversation: {place}: {problem['msg']}"
        ) from None


async def say(
    agent: Agent[Work, str], work: Work, question: Question, usage: RunUsage, **options: Any
) -> AgentAnswer:
    """Lets a model answer; what it writes is told while it writes, where its provider streams.

    Raises what the agent's run raises.
    """
    options = {
        "deps": work,
        "instructions": instructions_of(question),
        "output_type": str,
        "usage": usage,
        **options,
    }
    if work.tell is None or question.kind != "answer":
        result = await agent.run(prompt_of(question), **options)
    else:
        result = await _aloud(agent, prompt_of(question), work, options)
    answer = answer_of(result.output, question)
    answer.model = (result.response.model_name or "")[:MOST_NAME]
    answer.input_tokens, answer.output_tokens = usage.input_tokens, usage.output_tokens
    return answer


async def _aloud(
    agent: Agent[Work, str], prompt: str, work: Work, options: dict[str, Any]
) -> AgentRunResult[str]:
    """Runs an agent whose model is heard while it writes, or, when it cannot stream, is not."""
    assert work.tell is not None
    begun = False

    async def hear(context: RunContext[Work], events: AsyncIterable[Any]) -> None:
        nonlocal begun
        length = 0
        async for event in events:
            begun = True
            length += _heard(event, written)
            if length > _MOST_WRITTEN:
                raise output_invalid(f"the model writes more than {_MOST_WRITTEN} characters")

    async with Written(work.tell) as written:
        try:
            return await agent.run(prompt, event_stream_handler=hear, **options)
        except (NotImplementedError, AssertionError):
            # So say pydantic-ai's models that only answer as a whole, before anything is asked.
            if begun:
                raise
    return await agent.run(prompt, **options)


def _heard(event: Any, written: Written) -> int:
    """Takes what is text; returns how much was written, thoughts and tools' arguments too."""
    from pydantic_ai import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

    text: str | None
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            written.add(text)
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            written.add(text)
        case PartDeltaEvent(delta=other):
            text = getattr(other, "content_delta", None) or getattr(other, "args_delta", None)
        case _:
            return 0
    return len(text or "")
