"""Questions of conversations as language models read them, and what they answer."""

from __future__ import annotations

import json
import re
from typing import Any

from bxmesh.client.conversations.question import MOST_ITEMS, MOST_TEXT, AgentAnswer, Question

__all__ = ["answer_of", "instructions_of", "prompt_of"]

# What models put around words. Each run of it ends in something that is none of it, so that no text,
# however long, is read twice.
_MARKS = " \t\r*_"
_LABEL = r"(?im)^[ \t>*_#-]*{}[ \t*_]*:"
_ANSWER = re.compile(_LABEL.format("answer"))
_CONFIDENCE = re.compile(_LABEL.format("confidence"))
_RANKING = re.compile(_LABEL.format("ranking"))
_CHOICE = re.compile(_LABEL.format("choice"))
_PLACE = re.compile(r"(?<![0-9.-])[0-9]{1,4}(?![0-9])")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_FENCE = re.compile(r"[\s*_]*(?:```[a-z]*)?\s*", re.IGNORECASE)
_JSON = json.JSONDecoder()

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
    # Providers send what is no text, such as halves of characters.
    text = text.encode("utf-8", "replace").decode()
    answer = AgentAnswer(text=text[:MOST_TEXT])
    # Lines of the end are what was asked for; the rest may be of any length.
    text = text[-MOST_TEXT:]
    if question.kind == "rank":
        places = _PLACE.findall(_line(_RANKING, text))
        answer.ranking = [int(place) - 1 for place in places[:MOST_ITEMS]]
    elif question.kind == "judge":
        found = _PLACE.search(_line(_CHOICE, text))
        answer.choice = int(found[0]) - 1 if found else None
    else:
        if question.method == "structured":
            answer.answer = _data(_rest(_ANSWER, text))
        else:
            answer.answer = _line(_ANSWER, text) or None
        answer.confidence = _confidence(_line(_CONFIDENCE, text))
    return answer


def _rest(label: re.Pattern[str], text: str) -> str:
    """All that follows the last label of a kind."""
    ends = [found.end() for found in label.finditer(text)]
    return text[ends[-1] :] if ends else ""


def _line(label: re.Pattern[str], text: str) -> str:
    return _rest(label, text).partition("\n")[0].strip(_MARKS)


def _confidence(text: str) -> float | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    value = float(found[0])
    if "%" in text or value > 1:
        value /= 100
    return value if 0 <= value <= 1 else None


def _data(text: str) -> Any:
    fence = _FENCE.match(text)
    try:
        found = _JSON.raw_decode(text, fence.end() if fence else 0)[0]
        # What Python takes for JSON need not be: infinite numbers, halves of characters.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        return found
    except (ValueError, RecursionError):
        return None
