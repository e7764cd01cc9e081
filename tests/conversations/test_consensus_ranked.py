from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bxmesh.server.conversations.consensus import Outcome
from tests.conversations.voicing import RANKED, Deciding, Fields, reach


async def run_off(*ballots: Sequence[str], **more: Any) -> Outcome:
    """Each answers what stands first on its ballot."""
    return await reach(
        *(Fields(text=ballot[0], ranking=ballot) for ballot in ballots), method=RANKED, **more
    )


async def test_tennessee_chooses_its_capital() -> None:
    outcome = await run_off(
        *[["Memphis", "Nashville", "Chattanooga", "Knoxville"]] * 21,
        *[["Nashville", "Chattanooga", "Knoxville", "Memphis"]] * 13,
        *[["Chattanooga", "Knoxville", "Nashville", "Memphis"]] * 7,
        *[["Knoxville", "Chattanooga", "Nashville", "Memphis"]] * 9,
    )
    # Chattanooga goes, then Nashville.
    assert outcome.answer == "Knoxville"
    assert outcome.confidence == pytest.approx(29 / 50 * 0.5)
    assert [group.text for group in outcome.groups] == [
        "Memphis",
        "Nashville",
        "Knoxville",
        "Chattanooga",
    ]
    assert sum(group.share for group in outcome.groups) == pytest.approx(1)
    assert outcome.tie_break == ""


async def test_the_leader_of_the_first_round_may_lose() -> None:
    outcome = await run_off(*[["x", "y"]] * 4, *[["y", "z"]] * 3, *[["z", "y"]] * 2)
    assert outcome.answer == "y"


async def test_without_rankings_it_is_the_majority() -> None:
    outcome = await reach("x", "y", "x", "z", method=RANKED)
    assert (outcome.answer, outcome.confidence) == ("x", 0.25)


async def test_ballots_name_answers_or_participants() -> None:
    outcome = await reach(
        Fields(text="red", ranking=["p0", "Blue."]),
        Fields(text="blue", ranking=["p1"]),
        Fields(text="green", ranking=["p2", "p1"]),
        Fields(text="blue", ranking=["nobody", 7, {"a": [None]}, "p9", ""]),
        Fields(text="red"),
        method=RANKED,
    )
    assert outcome.answer == "blue"


async def test_a_name_is_a_participant_before_it_is_an_answer() -> None:
    outcome = await reach(
        Fields(text="p1", ranking=["p1"]), Fields(text="blue"), Fields(text="red"), method=RANKED
    )
    assert outcome.answer == "blue"


async def test_ones_own_answer_is_liked_if_only_last() -> None:
    outcome = await reach(
        Fields(text="x", ranking=["y"]), Fields(text="z"), Fields(text="y"), method=RANKED
    )
    assert outcome.answer == "y"
    assert [group.share for group in outcome.groups] == pytest.approx([2 / 3, 1 / 3, 0])


async def test_of_those_with_fewest_the_one_that_stands_lowest_goes() -> None:
    # All have one; z is nobody's second choice.
    outcome = await run_off(["z", "y"], ["x", "y"], ["y", "x"])
    assert (outcome.answer, outcome.tie_break) == ("y", "")


async def test_what_a_ballot_does_not_name_shares_its_last_places() -> None:
    # x has 3 points, y 3.5, z 2.5: z goes, and its ballot ends.
    outcome = await run_off(["z"], ["y"], ["x", "y", "z"])
    assert (outcome.answer, outcome.tie_break) == ("y", "first_stable")


async def test_then_the_least_sure_goes_and_then_the_last() -> None:
    answers = [
        Fields(text="x", ranking=["x", "y", "z"], confidence=0.5),
        Fields(text="y", ranking=["y", "z", "x"], confidence=0.4),
        Fields(text="z", ranking=["z", "x", "y"], confidence=0.6),
    ]
    # y goes, and its ballot is for z.
    assert (await reach(*answers, method=RANKED)).answer == "z"
    same = [Fields({**answer, "confidence": 0.5}) for answer in answers]
    # z goes, and its ballot is for x.
    assert (await reach(*same, method=RANKED)).answer == "x"


async def test_two_left_are_a_tie_like_any_other() -> None:
    outcome = await run_off(["x", "y"], ["y", "x"], judge=Deciding(lambda texts: 1))
    assert (outcome.answer, outcome.tie_break) == ("y", "judge")


async def test_ballots_that_end_count_for_confidence() -> None:
    outcome = await run_off(["x"], ["x"], ["y"], ["z", "y"], ["w"])
    # w goes and its ballot ends, then z's is for y: two and two of five.
    assert outcome.tie_break == "first_stable"
    assert outcome.confidence == pytest.approx(0.4 * 0.5)


async def test_a_ranking_is_read_so_far() -> None:
    long = [f"answer {number}" for number in range(100_000)]
    outcome = await reach(Fields(text="x", ranking=["y" * 100_000, *long]), "x", "y", method=RANKED)
    assert outcome.answer == "x"
