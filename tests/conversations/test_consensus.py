from __future__ import annotations

from typing import Any

import grpc
import pytest

from bxmesh.agent.v1.conversation_pb2 import ConsensusSettings
from bxmesh.server.conversations.consensus import Answer, consensus
from bxmesh.server.errors import MeshError
from bxmesh.server.json_values import json_of
from tests.conversations.voicing import JUDGE, MAJORITY, WEIGHTED, Deciding, Fields, reach, said


async def test_the_majority_wins_however_it_is_written() -> None:
    outcome = await reach("Paris", "paris.", "The Paris", "London", "Rome")
    assert outcome.answer in ("Paris", "paris.")
    assert outcome.groups[0].participant_ids == ("p0", "p1", "p2")
    assert [group.share for group in outcome.groups] == pytest.approx([0.6, 0.2, 0.2])
    assert outcome.confidence == pytest.approx(0.6 * 0.5)
    assert outcome.tie_break == ""
    assert outcome.method == MAJORITY


async def test_data_and_text_that_say_the_same_are_one_answer() -> None:
    outcome = await reach(1.5, "1.50", Fields(text="I think it is so", value="1.5"), True)
    assert outcome.groups[0].share == 0.75
    assert outcome.groups[0].participant_ids == ("p0", "p1", "p2")


async def test_data_goes_before_text_and_its_words_are_kept() -> None:
    outcome = await reach(
        Fields(text="Because of the cell.", value={"group": "P1"}),
        Fields(text="I agree.", value={"group": "P1"}),
    )
    assert outcome.answer == {"group": "P1"}
    assert outcome.text == "I agree."


async def test_the_surest_speaks_for_all() -> None:
    outcome = await reach(
        Fields(text="yes", confidence=0.2), Fields(text="Yes.", confidence=0.9), "YES"
    )
    assert outcome.text == "Yes."


async def test_weights_decide_a_weighted_vote_and_only_that() -> None:
    answers = (Fields(text="a b", weight=5.0), "c d", "c d")
    assert (await reach(*answers)).answer == "c d"
    outcome = await reach(*answers, method=WEIGHTED)
    assert outcome.answer == "a b"
    assert outcome.groups[0].share == pytest.approx(5 / 7)


async def test_weights_are_added_as_they_are_written() -> None:
    outcome = await reach(
        Fields(text="x", weight=0.1),
        Fields(text="x", weight=0.2),
        Fields(text="y", weight=0.3, confidence=0.9),
        method=WEIGHTED,
    )
    assert (outcome.answer, outcome.tie_break) == ("y", "confidence")


async def test_who_weighs_nothing_does_not_count() -> None:
    outcome = await reach(
        Fields(text="x", weight=0.0, confidence=0.0),
        Fields(text="x", weight=1.0, confidence=0.8),
        Fields(text="y", weight=0.0),
        method=WEIGHTED,
    )
    assert outcome.answer == "x"
    assert outcome.confidence == pytest.approx(0.8)
    assert [group.share for group in outcome.groups] == [1.0, 0.0]


async def test_when_all_weigh_nothing_there_is_no_vote() -> None:
    with pytest.raises(MeshError) as raised:
        await reach(*(Fields(text=text, weight=0.0) for text in "xyz"), method=WEIGHTED)
    assert (raised.value.code, raised.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_VOTES",
    )


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_must_be_one(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        Answer("p0", "x", weight=weight)


# Ties: by confidence, then by the judge, then by the first stable answer.


@pytest.mark.parametrize(
    ("confidences", "judge", "expected"),
    [
        ((0.4, 0.9), "x", ("y", "confidence")),
        ((0.9, 0.4), None, ("x", "confidence")),
        ((0.5, None), "y", ("y", "judge")),
        ((0.7, 0.7), "y", ("y", "judge")),
        ((0.7, 0.7), "fails", ("x", "first_stable")),
        ((0.7, 0.7), "elsewhere", ("x", "first_stable")),
        ((None, None), None, ("x", "first_stable")),
        ((float("nan"), None), None, ("x", "first_stable")),
        ((7.0, 1.0), None, ("x", "first_stable")),
        ((-7.0, 0.1), None, ("y", "confidence")),
    ],
)
async def test_ties(
    confidences: tuple[float | None, float | None], judge: str | None, expected: tuple[str, str]
) -> None:
    choices = {
        "x": lambda texts: texts.index("x"),
        "y": lambda texts: texts.index("y"),
        "fails": lambda texts: 1 // 0,
        "elsewhere": lambda texts: 2,
    }
    outcome = await reach(
        *(Fields(text=text, confidence=sure) for text, sure in zip("xy", confidences, strict=True)),
        judge=Deciding(choices[judge]) if judge else None,
    )
    assert (outcome.answer, outcome.tie_break) == expected
    assert outcome.judge_reasons == (("so it is",) if expected[1] == "judge" else ())


async def test_the_judge_sees_those_who_are_tied_and_as_sure() -> None:
    judge = Deciding(lambda texts: 1)
    outcome = await reach(
        *(Fields(text=text, confidence=0.6) for text in ("x", "y", "z", "x", "y")),
        *(Fields(text="z", confidence=0.2), "other"),
        judge=judge,
        question="Which?",
    )
    assert judge.asked == [("Which?", ["x", "y"])]
    assert outcome.answer == "y"


async def test_first_stable_is_what_somebody_has_kept_to_longest() -> None:
    earlier = [said("x", "y", "z"), said("y", "y", None)]
    outcome = await reach("x", "y", "z", earlier=earlier)
    # p0 went to y and back, p1 and p2 kept to theirs: p1 comes first.
    assert (outcome.answer, outcome.tie_break) == ("y", "first_stable")
    assert [group.stable_since for group in outcome.groups] == [1, 1, 3]
    assert outcome.groups[0].stable_participant_id == "p1"


async def test_nothing_is_asked_without_a_tie() -> None:
    judge = Deciding(lambda texts: 0)
    await reach("x", "x", "y", judge=judge)
    assert judge.asked == []


# The judge's method.


async def test_the_judge_decides_against_the_majority() -> None:
    judge = Deciding(lambda texts: texts.index("y"))
    outcome = await reach("x", "x", "y", method=JUDGE, judge=judge, question="Which?")
    assert (outcome.answer, outcome.tie_break) == ("y", "")
    assert outcome.confidence == pytest.approx(0.5 / 3)
    assert outcome.judge_reasons == ("so it is",)
    assert [group.answer for group in outcome.groups] == ["x", "y"]


async def test_a_judge_that_fails_leaves_it_to_the_votes_and_is_asked_once() -> None:
    judge = Deciding(lambda texts: 99)
    outcome = await reach("x", "y", method=JUDGE, judge=judge)
    assert (outcome.answer, outcome.tie_break) == ("x", "first_stable")
    assert len(judge.asked) == 1


async def test_a_judge_has_nothing_to_decide_when_all_agree() -> None:
    judge = Deciding(lambda texts: 0)
    assert (await reach("x", "x", method=JUDGE, judge=judge)).answer == "x"
    assert judge.asked == []


async def test_the_judges_method_needs_one() -> None:
    with pytest.raises(MeshError) as raised:
        await reach("x", "y", method=JUDGE)
    assert raised.value.field_violations[0][0] == "consensus.judge"


# Quorum.


@pytest.mark.parametrize(
    ("participants", "answered", "quorum", "enough"),
    [
        (1, 0, 0, False),
        (1, 1, 0, True),
        (2, 1, 0, False),
        (2, 2, 0, True),
        (3, 1, 0, False),
        (3, 2, 0, True),
        (4, 2, 0, False),
        (4, 3, 0, True),
        (4, 1, 1, True),
        (4, 0, 1, False),
        (4, 2, 3, False),
        (4, 3, 3, True),
        (4, 4, 5, False),
        (64, 32, 0, False),
        (64, 33, 0, True),
        (64, 63, 64, False),
        (0, 0, 0, False),
    ],
)
async def test_quorum(participants: int, answered: int, quorum: int, enough: bool) -> None:
    answers = ["yes"] * answered + [None] * (participants - answered)
    if enough:
        assert (await reach(*answers, quorum=quorum)).groups[0].share == 1
        return
    with pytest.raises(MeshError) as raised:
        await reach(*answers, quorum=quorum)
    assert raised.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert raised.value.reason == "NO_QUORUM"
    assert raised.value.metadata["answered"] == str(answered)
    missing = [f"p{index}" for index in range(answered, participants)]
    assert raised.value.metadata["missing"] == ",".join(missing)


async def test_empty_answers_are_abstentions_and_no_votes() -> None:
    outcome = await reach("yes", " \n", Fields(value=float("nan")), "yes", "no", None, quorum=3)
    assert outcome.groups[0].share == pytest.approx(2 / 3)
    assert outcome.abstentions == {
        "p1": "its answer is empty",
        "p2": "its answer is empty",
        "p5": "did not answer",
    }


@pytest.mark.parametrize("names", [["p0", "p0"], ["p0", "stranger"]])
async def test_each_participant_answers_once_and_nobody_else(names: list[str]) -> None:
    with pytest.raises(ValueError, match="is no participant, or answers twice"):
        await consensus(
            [Answer(name, "x") for name in names],
            ConsensusSettings(),
            participants=["p0", "p1"],
        )


# Confidence and evidence.


async def test_confidence_is_the_share_times_the_mean_confidence_behind_it() -> None:
    outcome = await reach(
        *(Fields(text="x", confidence=sure) for sure in (0.9, 0.7)),
        Fields(text="y", confidence=1.0),
        "x",
    )
    assert outcome.confidence == pytest.approx(0.75 * (0.9 + 0.7 + 0.5) / 3)


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ([], 0.8),
        ([["x", "x", "x"]], (0.8 + 1) / 2),
        ([["y", "z", "w"]], (0.8 + 0) / 2),
        ([["x", "y", "y"], ["x", "x", "y"]], (0.8 + 0.5) / 2),
        ([["x", None, None], [None, None, None]], (0.8 + 1) / 2),
    ],
)
async def test_confidence_is_calibrated_against_earlier_agreement(
    earlier: list[list[Any]], expected: float
) -> None:
    outcome = await reach(
        *(Fields(text="x", confidence=0.8) for _ in range(3)),
        earlier=[said(*turn) for turn in earlier],
    )
    assert outcome.confidence == pytest.approx(expected)


async def test_evidence_is_that_of_those_behind_it_once_and_in_order() -> None:
    outcome = await reach(
        Fields(text="x", evidence=["b", "a", " "]),
        Fields(text="y", evidence=["not this"]),
        Fields(text="x", evidence=["a", "c"]),
    )
    assert outcome.evidence == ("b", "a", "c")


async def test_evidence_is_bounded() -> None:
    outcome = await reach(
        Fields(text="x", evidence=["long" * 1_000, *map(str, range(1_000))]),
        Fields(text="x", evidence=[str(number) for number in range(2_000, 3_000)]),
    )
    assert len(outcome.evidence) == 64
    assert len(outcome.evidence[0]) == 1024


async def test_the_message_has_it_all() -> None:
    message = (await reach("Paris", {"city": "Rome"}, "paris", 4)).to_message(3)
    assert json_of(message.answer) == message.text == "Paris"
    assert [json_of(group.answer) for group in message.groups] == ["Paris", {"city": "Rome"}, 4]
    assert [list(group.participant_ids) for group in message.groups] == [
        ["p0", "p2"],
        ["p1"],
        ["p3"],
    ]
    assert (message.method, message.turn, message.tie_break) == (MAJORITY, 3, "")
    assert not message.HasField("spread")
