"""What holds whatever is answered, by whom, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bxmesh.agent.v1.conversation_pb2 import ConsensusMethod, ConsensusSettings
from bxmesh.server.conversations.consensus import Answer, Candidate, Outcome, Verdict, consensus
from bxmesh.server.errors import MeshError
from tests.conversations.voicing import JUDGE, MAJORITY, NUMERIC, RANKED, STRUCTURED, WEIGHTED

_TEXTS = ["yes", "Yes.", "no", "5", "5.0 Å", "6 Å", "not yes", "maybe", "perhaps", "perchance"]
_WORDS = st.sampled_from(_TEXTS)
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.just({"a": 1}), _WORDS)
_METHODS = st.sampled_from([MAJORITY, WEIGHTED, RANKED, JUDGE, NUMERIC])
_MANY = settings(max_examples=50, deadline=None)


class Letters:
    """Meaning by how often letters are used."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.array([[text.count(letter) for letter in "abehimnoprsy "] for text in texts])


class First:
    """A judge for whom the alphabet decides."""

    async def decide(self, question: str, candidates: Sequence[Candidate]) -> Verdict:
        texts = [str(candidate.answer) for candidate in candidates]
        return Verdict(texts.index(min(texts)))


@st.composite
def _turns(draw: st.DrawFn) -> list[list[Answer]]:
    count = draw(st.integers(1, 7))
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        turn = []
        for index in range(count):
            if draw(st.integers(0, 9)):
                turn.append(
                    Answer(
                        f"p{index}",
                        draw(_WORDS),
                        draw(_VALUES),
                        draw(st.none() | st.sampled_from([0.0, 0.5, 0.9, 1.0])),
                        draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1000.0])),
                        tuple(draw(st.lists(_WORDS | st.sampled_from(["p0", "p1"]), max_size=4))),
                        tuple(draw(st.lists(st.sampled_from("abc"), max_size=2))),
                    )
                )
        turns.append(turn)
    return turns


async def _reach(
    turns: list[list[Answer]],
    method: ConsensusMethod.ValueType,
    participants: Sequence[str] = tuple(f"p{index}" for index in range(8)),
    quorum: int = 1,
) -> Outcome | str:
    try:
        return await consensus(
            turns[-1],
            ConsensusSettings(method=method, quorum=quorum),
            participants=participants,
            earlier=turns[:-1],
            judge=First(),
            meaning=Letters(),
        )
    except MeshError as error:
        return error.reason


@_MANY
@given(_turns(), _METHODS)
async def test_shares_are_of_one_and_confidence_is_a_probability(
    turns: list[list[Answer]], method: ConsensusMethod.ValueType
) -> None:
    outcome = await _reach(turns, method)
    assume(isinstance(outcome, Outcome))
    assert isinstance(outcome, Outcome)
    assert sum(group.share for group in outcome.groups) == pytest.approx(1)
    assert all(0 <= group.share <= 1 and 0 <= group.confidence <= 1 for group in outcome.groups)
    assert [group.share for group in outcome.groups] == sorted(
        (group.share for group in outcome.groups), reverse=True
    )
    assert 0 <= outcome.confidence <= 1
    grouped = [name for group in outcome.groups for name in group.participant_ids]
    assert sorted(grouped + list(outcome.abstentions)) == [f"p{index}" for index in range(8)]
    assert outcome.to_message(1).confidence == outcome.confidence


@_MANY
@given(_turns(), _METHODS, st.integers())
async def test_the_order_of_answers_does_not_matter(
    turns: list[list[Answer]], method: ConsensusMethod.ValueType, seed: int
) -> None:
    shuffled = [random.Random(seed).sample(turn, len(turn)) for turn in turns]
    assert await _reach(turns, method) == await _reach(shuffled, method)


@_MANY
@given(_turns(), _METHODS, st.permutations(range(8)))
async def test_the_names_of_participants_do_not_matter(
    turns: list[list[Answer]], method: ConsensusMethod.ValueType, order: list[int]
) -> None:
    names = {f"p{index}": f"name{order[index]}" for index in range(8)}

    def renamed(answer: Answer) -> Answer:
        ranking = [names.get(str(entry), entry) for entry in answer.ranking]
        return replace(answer, participant_id=names[answer.participant_id], ranking=ranking)

    one = await _reach(turns, method)
    other = await _reach(
        [[renamed(answer) for answer in turn] for turn in turns], method, tuple(names.values())
    )
    if isinstance(one, str):
        assert one == other
        return
    assert isinstance(other, Outcome)
    groups = tuple(
        replace(
            group,
            participant_ids=tuple(names[name] for name in group.participant_ids),
            stable_participant_id=names[group.stable_participant_id],
        )
        for group in one.groups
    )
    supporters = tuple(names[name] for name in one.supporters)
    abstentions = {names[name]: why for name, why in one.abstentions.items()}
    outliers = tuple(names[name] for name in one.outliers)
    assert other == replace(
        one, groups=groups, supporters=supporters, abstentions=abstentions, outliers=outliers
    )


@_MANY
@given(
    _turns(),
    st.sampled_from([MAJORITY, WEIGHTED]),
    st.sampled_from([0.0, 1e-300, 0.1, 1000.0]),
    st.sampled_from([None, 0.0, 1.0]),
)
async def test_one_more_vote_for_the_winner_does_not_unseat_it(
    turns: list[list[Answer]],
    method: ConsensusMethod.ValueType,
    weight: float,
    confidence: float | None,
) -> None:
    before = await _reach(turns, method)
    assume(isinstance(before, Outcome))
    assert isinstance(before, Outcome)
    text = before.answer if isinstance(before.answer, str) else ""
    value = None if text else before.answer
    more = Answer("p7", text, value, confidence, weight if method == WEIGHTED else 1.0)
    after = await _reach([*turns[:-1], [*turns[-1], more]], method)
    assert isinstance(after, Outcome)
    assert set(after.supporters) == {*before.supporters, "p7"}


@_MANY
@given(
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=2, max_size=10),
    st.lists(st.sampled_from("xy"), min_size=2, max_size=10),
)
async def test_confidence_grows_with_the_share(sure: list[float], earlier: list[str]) -> None:
    last = -1.0
    for count in range(1, 6):
        # As sure, and as agreed before: only the share differs.
        now = [Answer(f"p{index}", "x", confidence=0.7) for index in range(count)]
        others = [
            Answer(f"p{index}", f"other {index}", confidence=0.0) for index in range(count, 6)
        ]
        before = [Answer(f"p{index}", text) for index, text in enumerate(earlier[:6])]
        outcome = await _reach([before, [*now, *others]], MAJORITY)
        assert isinstance(outcome, Outcome)
        assert outcome.answer == "x"
        assert outcome.confidence >= last
        last = outcome.confidence


@pytest.mark.parametrize("method", [MAJORITY, WEIGHTED, RANKED, JUDGE, NUMERIC, STRUCTURED])
@pytest.mark.parametrize("kinds", [1, 2, 63, 64])
async def test_sixty_four_participants(method: ConsensusMethod.ValueType, kinds: int) -> None:
    names = [f"p{index}" for index in range(64)]
    answers = [
        Answer(
            name,
            f"kind {index % kinds}",
            index % kinds if method in (NUMERIC, STRUCTURED) else None,
            ranking=[f"kind {(index + step) % kinds}" for step in range(64)],
        )
        for index, name in enumerate(names)
    ]
    deciding = ConsensusSettings(method=method)
    deciding.answer_schema.update({"type": "integer"})
    outcome = await consensus(
        answers,
        deciding,
        participants=names,
        earlier=[answers] * 5,
        judge=First(),
        meaning=Letters(),
    )
    assert len(outcome.groups) == kinds
    assert sum(group.share for group in outcome.groups) == pytest.approx(1)


_HOSTILE = [
    "x" * 2_000_000,
    "no " * 1_000_000,
    "\ud800\udfff\udc00" * 1_000,
    "\x00",
    "(" * 200_000,
    "1" * 1_000_000,
    "1," * 100_000 + "1",
    "**" * 100_000 + "a",
    "a\u0301" * 100_000,
    "\ufdfa" * 4_000,
    "9" * 300,
    "1e-9999",
    "-" * 4_000,
    "```" * 1_000,
    "[" * 100_000,
    '{"a":' * 10_000,
    "= " * 2_000,
    "± 5 " * 1_000,
]


@pytest.mark.parametrize("method", [MAJORITY, WEIGHTED, RANKED, JUDGE, NUMERIC, STRUCTURED])
async def test_hostile_answers_end(method: ConsensusMethod.ValueType) -> None:
    values: list[Any] = [
        float("nan"),
        float("inf"),
        10**400,
        [[]] * 1_000,
        {"\ud800": 1},
        {1: 2},
        "x" * 2_000_000,
        object(),
        1e308,
        -1e308,
        5e-324,
    ]
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    values.append(nested)
    answers = [
        *(
            Answer(f"t{i}", text, ranking=_HOSTILE, evidence=_HOSTILE)
            for i, text in enumerate(_HOSTILE)
        ),
        *(Answer(f"v{i}", "fine", value, ranking=values) for i, value in enumerate(values)),
        Answer("n1", "5", 5, confidence=float("inf")),
        Answer("n2", "5", 5, confidence=float("-inf")),
    ]
    deciding = ConsensusSettings(method=method, quorum=1)
    deciding.answer_schema.update({"title": "anything"})
    outcome = await consensus(
        answers,
        deciding,
        participants=[answer.participant_id for answer in answers],
        earlier=[answers],
        judge=First(),
        meaning=Letters(),
    )
    assert 0 <= outcome.confidence <= 1
    outcome.to_message(1).SerializeToString()
