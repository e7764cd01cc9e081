"""Questions of conversations as language models read them, and what they answer."""

from __future__ import annotations

import json
import re
from typing import Any

from bxmesh.client.conversations.question import AgentAnswer, Question

__all__ = ["answer_of", "instructions_of", "prompt_of"]

_MOST_TEXT = 65_536
_LINE = r"(?im)^[ \t>*_#-]*{}[ \t*_]*:[ \t*_]*(.*?)[ \t*_]*$"
_ANSWER = re.compile(_LINE.format("answer"))
_CONFIDENCE = re.compile(_LINE.format("confidence"))
_RANKING = re.compile(_LINE.format("ranking"))
_CHOICE = re.compile(_LINE.format("choice"))
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_FENCE = re.compile(r"^```[a-z]*\s*|\s*```$", re.IGNORECASE)

_FORMS = {
    "numeric": "Answer: <one number with its unit>",
    "structured": "Answer: <a JSON object on one line that fits the schema below>",
}
_FORM = "Answer: <the answer alone, as short as it can be>"


def instructions_of(question: Question) -> str:
    """Returns what the model is told about how to answer."""
    match question.kind:
        case "rank":
            form = "End with one line:\nRanking: <all numbers of the answers, the best first>"
        case "judge":
            form = (
                "You are the judge. Say in one sentence why, and end with one line:\n"
                "Choice: <the number of the best answer>"
            )
        case _:
            form = (
                f"End with two lines:\n{_FORMS.get(question.method, _FORM)}\n"
                "Confidence: <how sure you are, from 0 to 1>"
            )
            if question.answer_schema is not None:
                schema = json.dumps(question.answer_schema, ensure_ascii=False)
                form += f"\nThe JSON Schema:\n{schema}"
    return "\n\n".join(filter(None, (question.instructions, form)))


def prompt_of(question: Question) -> str:
    """Returns what the model is asked."""
    parts = []
    if question.earlier:
        said = "\n\n".join(
            f"[turn {one.turn}, {one.participant_id or 'the one who asks'}]\n{one.text}"
            for one in question.earlier
        )
        parts.append(f"What was said so far:\n\n{said}")
    parts.append(f"The question:\n\n{question.message}")
    if question.candidates:
        listed = "\n\n".join(f"{i}. {text}" for i, text in enumerate(question.candidates, 1))
        parts.append(f"The answers:\n\n{listed}")
    return "\n\n".join(parts)


def answer_of(text: str, question: Question) -> AgentAnswer:
    """Returns what a model has written as an answer; the last line of each kind counts."""
    answer = AgentAnswer(text=text[:_MOST_TEXT])
    if question.kind == "rank":
        answer.ranking = [int(float(one)) - 1 for one in _NUMBER.findall(_last(_RANKING, text))][
            :64
        ]
    elif question.kind == "judge":
        found = _NUMBER.findall(_last(_CHOICE, text))
        answer.choice = int(float(found[0])) - 1 if found else None
    else:
        said = _last(_ANSWER, text)
        answer.answer = _data(said) if question.method == "structured" else said or None
        answer.confidence = _confidence(_last(_CONFIDENCE, text))
    return answer


def _last(pattern: re.Pattern[str], text: str) -> str:
    # Lines of the end are what was asked for; the rest may be of any length.
    found = pattern.findall(text[-_MOST_TEXT:])
    return str(found[-1]) if found else ""


def _confidence(text: str) -> float | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    value = float(found[0])
    if "%" in text or 1 < value <= 100:
        value /= 100
    return min(1.0, value)


def _data(text: str) -> Any:
    try:
        return json.loads(_FENCE.sub("", text)) if text else None
    except (ValueError, RecursionError):
        return None
