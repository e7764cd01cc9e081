"""What models write, however they write it, as answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bxmesh.client.conversations import AgentAnswer, Question, Said
from bxmesh.client.conversations.prompts import answer_of, instructions_of, prompt_of

METHODS = ("majority", "weighted", "ranked", "judge", "numeric", "structured")
# Each would keep a pattern that goes back at work for minutes.
LONG = 65_000
ENDLESS = [
    "Answer: x" + " " * LONG + "x",
    "Answer:" + "* " * (LONG // 2) + "x",
    "*" * LONG + "\n" + "_" * LONG,
    "Answer" + " " * LONG,
    "Answer: ```" + " \n" * (LONG // 2) + "x",
    "Answer: " + "[" * LONG,
    "Answer: " + "1" * LONG,
    "Answer: " + '{"a":' * (LONG // 5),
    "Confidence: " + "1" * LONG,
    "Ranking: " + "1" * LONG,
    "Ranking: " + "1 " * (LONG // 2),
    "Choice: " + "9" * LONG,
    "Answer:\n" * (LONG // 8),
]
PIECES = (
    *("Answer", "Confidence", "Ranking", "Choice", ":", " ", "*", "_", "\n", "```json", "{", "}"),
    *("[", '"', "0", "1e999", "-", ".", "%", "NaN", "\x00", "\ud800", "\\ud800", "²", "٣"),
)


def question(kind: str = "answer", method: str = "majority", **fields: Any) -> Question:
    return Question.model_validate(
        {
            "kind": kind,
            "method": method,
            "conversation_id": "c",
            "participant_id": "p",
            "turn": 1,
            "message": "Which?",
            **fields,
        }
    )


def read(text: str, kind: str = "answer", method: str = "majority") -> AgentAnswer:
    return answer_of(text, question(kind, method))


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        ("It is so.\nAnswer: four\nConfidence: 0.8", "four", 0.8),
        ("**Answer:** four  \r\n**Confidence:** 80%\r\n", "four", 0.8),
        ("> - *Answer*: _four_\n# CONFIDENCE : 80", "four", 0.8),
        ("Answer: one\nAnswer: two\nConfidence: 1", "two", 1.0),
        ("Answer: \nConfidence: high", None, None),
        ("Answer: x\nConfidence: 250", "x", None),
        ("Answer: x\nConfidence: -0.5", "x", None),
        ("The answer: is not at the beginning", None, None),
        ("", None, None),
        ("Answer: \ud800", "?", None),
    ],
)
def test_answers_are_found(text: str, answer: str | None, confidence: float | None) -> None:
    found = read(text)
    assert (found.answer, found.confidence) == (answer, confidence)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('Answer: {"x": [1, 2]}\nConfidence: 1', {"x": [1, 2]}),
        ('Answer:\n```json\n{\n  "x": 1\n}\n```\nConfidence: 1', {"x": 1}),
        ('**Answer:** ```{"x": 1}```', {"x": 1}),
        ('Answer: {"x": 1', None),
        ("Answer: words", None),
        ("Answer: [NaN]", None),
        ("Answer: 1e999", None),
        ('Answer: "\\ud800"', None),
        ("Answer:", None),
    ],
)
def test_data_are_found(text: str, answer: Any) -> None:
    assert read(text, method="structured").answer == answer


def test_places_are_found() -> None:
    assert read("Ranking: 2, 1 and 3.", "rank").ranking == [1, 0, 2]
    assert read("Ranking: 3 > 1 > 2", "rank").ranking == [2, 0, 1]
    assert read("no order", "rank").ranking == []
    assert len(read("Ranking: " + "1 " * 1000, "rank").ranking) == 64
    assert read("Because.\n**Choice: 2**", "judge").choice == 1
    assert read("Choice: " + "9" * 5000, "judge").choice is None
    assert read("none", "judge").choice is None


@given(
    text=st.one_of(
        st.text(),
        st.sampled_from(ENDLESS),
        st.lists(
            st.sampled_from(PIECES),
            max_size=40,
        ).map("".join),
    ),
    kind=st.sampled_from(["answer", "rank", "judge"]),
    method=st.sampled_from(METHODS),
)
@example("Answer: " + "[" * 65_000, "answer", "structured")
@example("Ranking: " + "1" * 65_000, "rank", "ranked")
def test_whatever_is_written_is_an_answer(text: str, kind: str, method: str) -> None:
    found = read(text, kind, method)
    # What one side takes the other does.
    sent = json.loads(json.dumps(found.model_dump(), ensure_ascii=False).encode())
    again = AgentAnswer.of(sent)
    assert again.text == found.text
    assert all(0 <= place + 1 < 10_000 for place in found.ranking)


@pytest.mark.parametrize("kind", ["answer", "rank", "judge"])
@pytest.mark.parametrize("text", ENDLESS, ids=range(len(ENDLESS)))
def test_long_texts_are_read_once(text: str, kind: str) -> None:
    # A pattern that goes back over them would not end within the test's time.
    for _ in range(10):
        read(text, kind, "structured")
        read(text, kind)


def test_questions_say_all_there_is() -> None:
    asked = question(
        instructions="Be brief.",
        earlier=[Said(turn=1, participant_id="a", text="four"), Said(turn=2, text="And now?")],
        candidates=["A", "B"],
    )
    prompt = prompt_of(asked)
    for text in ("[turn 1, a]\nfour", "[turn 2, the one who asks]\nAnd now?", "Which?", "2. B"):
        assert text in prompt
    assert instructions_of(asked).startswith("Be brief.\n\nEnd with two lines:\nAnswer:")
    assert "Choice:" in instructions_of(question("judge"))
    assert "Ranking:" in instructions_of(question("rank"))
    schema = {"type": "object"}
    assert '{"type": "object"}' in instructions_of(
        question(method="structured", answer_schema=schema)
    )
