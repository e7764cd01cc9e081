from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bxmesh.server.conversations.consensus.numeric import read_number
from bxmesh.server.conversations.consensus.voices import AbstentionError
from bxmesh.server.errors import MeshError
from tests.conversations.voicing import NUMERIC, Fields, reach, said


@pytest.mark.parametrize(
    ("answer", "number", "unit"),
    [
        (1.5, 1.5, ""),
        (2, 2, ""),
        ("1.8", 1.8, ""),
        ("1.8 Å", 1.8, "Å"),
        ("about 1.8Å.", 1.8, "Å"),
        ("The resolution is 1.8 Å, as the file says.", 1.8, "Å"),
        ("The answer is **42**.", 42, ""),
        ("From 2 datasets and 3 crystals. Answer: 1.9", 1.9, ""),
        ("Answer: 5\n\nNo, wait. Answer: 6", 6, ""),
        ("x=5", 5, ""),
        ("2 + 3 = 5", 5, ""),
        ("1.523(4) Å", 1.523, "Å"),
        ("5 ± 1 nm", 5, ""),
        ("5±1", 5, ""),
        ("~1,200", 1200, ""),
        ("−3.5e-2", -0.035, ""),
        ("1.5 × 10^3 Da", 1500, "Da"),
        ("50 %", 50, "%"),
        ("$5", 5, "$"),
        ("It is 7. Yes, 7.", 7, ""),
        ("chain A of 5CHX has 3", 3, ""),
        (Fields(text="something", value="12 kDa"), 12, "kDa"),
        ("word " * 3_000 + "3 and 4, so the answer is 5", 5, ""),
    ],
)
def test_numbers_in_answers(answer: Any, number: float, unit: str) -> None:
    voice = read_number(said(answer)[0], 0)
    assert (voice.number, voice.unit) == (number, unit)


@pytest.mark.parametrize(
    "answer",
    [
        "none",
        "NaN",
        "inf",
        "Infinity",
        "1e999",
        True,
        [1],
        {"a": 1},
        "between 5 and 7",
        "The answer is 5 or 6",
        "The answer is 5 Å to 6 Å",
        "5-7",
        "3 or 4",
        "P212121",
        Fields(value=float("nan")),
        Fields(value=float("inf")),
        Fields(value=10**400),
        "word " * 3_000 + "5",
        "5" * 5_000,
    ],
    ids=lambda answer: str(answer)[:20],
)
def test_what_is_not_one_number_is_an_abstention(answer: Any) -> None:
    with pytest.raises(AbstentionError):
        read_number(said(answer)[0], 0)


async def test_the_median_its_spread_and_who_is_far_off() -> None:
    outcome = await reach(1.0, 1.01, 1.02, 1.03, 9.0, "no idea", method=NUMERIC)
    assert outcome.answer == 1.02
    assert outcome.spread == pytest.approx(0.01)
    assert outcome.outliers == ("p4",)
    assert outcome.confidence == pytest.approx(0.8 * 0.5)
    assert outcome.abstentions == {"p5": "its answer is no number"}
    message = outcome.to_message(1)
    assert message.spread == pytest.approx(0.01)
    assert message.answer.number_value == 1.02


async def test_the_same_number_is_one_group() -> None:
    outcome = await reach("1.50", 1.5, "1.5 Å", "2 Å", method=NUMERIC)
    assert [group.participant_ids for group in outcome.groups] == [("p0", "p1", "p2"), ("p3",)]
    assert outcome.text == "1.5 Å"


async def test_numbers_that_differ_widely_have_nobody_behind_their_median() -> None:
    outcome = await reach(1, 100, method=NUMERIC, earlier=[said(1, 100)])
    assert (outcome.answer, outcome.confidence, outcome.evidence) == (50.5, 0.0, ())


async def test_what_is_in_another_unit_is_an_abstention() -> None:
    outcome = await reach("1.5 Å", "0.15 nm", "1.6 Å", 1.7, method=NUMERIC)
    assert outcome.answer == 1.6
    assert outcome.abstentions == {"p1": "its number is in nm, not in Å"}
    with pytest.raises(MeshError, match="2 of 4"):
        await reach("1.5 Å", "0.15 nm", "none", "1.6 Å", method=NUMERIC)


async def test_agreement_with_the_median_in_earlier_turns_counts() -> None:
    outcome = await reach(
        *(Fields(value=5, confidence=0.8) for _ in range(2)),
        method=NUMERIC,
        earlier=[said(5, 9)],
    )
    assert outcome.confidence == pytest.approx((0.8 + 0.5) / 2)


async def test_who_is_close_is_no_outlier() -> None:
    outcome = await reach(1, 1, 1, 1, 1.01, 1.1, method=NUMERIC)
    assert outcome.outliers == ("p5",)


async def test_zeros_agree() -> None:
    outcome = await reach(0, 0.0, -0.0, method=NUMERIC)
    assert (outcome.answer, outcome.spread, outcome.confidence) == (0, 0, 0.5)


_FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(_FINITE, min_size=1, max_size=64))
async def test_the_median_is_within_and_nothing_overflows(numbers: list[float]) -> None:
    outcome = await reach(*numbers, method=NUMERIC)
    assert isinstance(outcome.answer, int | float)
    assert min(numbers) <= outcome.answer <= max(numbers)
    assert outcome.spread is not None
    assert 0 <= outcome.spread <= max(numbers) / 2 - min(numbers) / 2 + 1e-300
    assert 0 <= outcome.confidence <= 1
    assert sum(group.share for group in outcome.groups) == pytest.approx(1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
async def test_median_and_spread_are_those_of_others(numbers: list[float]) -> None:
    outcome = await reach(*numbers, method=NUMERIC)
    assert outcome.answer == pytest.approx(statistics.median(numbers))
    lower, upper = np.percentile(numbers, [25, 75])
    assert outcome.spread == pytest.approx((upper - lower) / 2, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1, 100), min_size=3, max_size=20), st.sampled_from([1e-6, 1e6, -1.0]))
async def test_the_scale_does_not_matter(numbers: list[float], scale: float) -> None:
    # What is just as far off as may be is rounded either way.
    outcome = await reach(*numbers, method=NUMERIC)
    scaled = await reach(*(number * scale for number in numbers), method=NUMERIC)
    assert scaled.answer == pytest.approx(float(str(outcome.answer)) * scale)
