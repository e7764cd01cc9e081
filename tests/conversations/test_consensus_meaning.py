from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conversations.voicing import Placed, reach, said


class Alike:
    """Meaning to which all texts are the same."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.ones((len(texts), 3))


async def test_texts_that_mean_the_same_are_one_answer() -> None:
    meaning = Placed({"it is monoclinic": (1.0, 0.0), "cell is monoclinic one": (0.95, 0.3)})
    outcome = await reach(
        "It is monoclinic", "The cell is a monoclinic one.", "Cubic", "Cubic", "It is monoclinic"
    )
    assert [group.share for group in outcome.groups] == [0.4, 0.4, 0.2]
    outcome = await reach(
        "It is monoclinic",
        "The cell is a monoclinic one.",
        "Cubic",
        "Cubic",
        "It is monoclinic",
        meaning=meaning,
    )
    assert [group.share for group in outcome.groups] == [0.6, 0.4]
    assert meaning.asked == [["cell is monoclinic one", "cubic", "it is monoclinic"]]


async def test_no_chain_of_small_steps_joins_what_is_far_apart() -> None:
    # Each is 20° from the next: cos 20° = 0.94, cos 40° = 0.77.
    places = {
        name: (float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle))))
        for name, angle in [("red", 0), ("rose", 20), ("pink", 40), ("white", 60)]
    }
    outcome = await reach("red", "rose", "pink", "white", meaning=Placed(places))
    assert sorted(len(group.participant_ids) for group in outcome.groups) == [1, 1, 2]


async def test_groups_do_not_depend_on_the_order() -> None:
    angles = [0, 20, 40, 60, 75, 100]
    names = ["e", "c", "a", "f", "b", "d"]
    places = {
        name: (float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle))))
        for name, angle in zip(names, angles, strict=True)
    }
    found = set()
    for order in itertools.islice(itertools.permutations(names), 0, None, 7):
        outcome = await reach(*order, meaning=Placed(places))
        by_name = {f"p{index}": name for index, name in enumerate(order)}
        found.add(
            frozenset(
                frozenset(by_name[each] for each in group.participant_ids)
                for group in outcome.groups
            )
        )
    assert len(found) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 5", "It is 6"),
        ("It is 5", "It is it"),
        ("The distance is 5 Å", "The distance is 5 nm"),
        ("Two dogs", "Three dogs"),
        ("One dog", "Many dogs"),
        ("Space group P21", "Space group P212121"),
        ("It is stable", "It is not stable"),
        ("It is stable", "It isn't stable"),
        ("It is stable", "It is unstable"),
        ("It is not Paris but London", "It is not London but Paris"),
        ("A binds better than B", "B binds better than A"),
        ("Yes, it does", "No, it does"),
        ("True", "False"),
        ("R rises with it", "R falls with it"),
        ("It never works", "It always works"),
        ("With water", "Without water"),
        ("Die Zelle ist nicht kubisch", "Die Zelle ist kubisch"),
        ("Dogs chase cats", "Cats chase dogs"),
    ],
)
async def test_what_is_in_contrast_stays_apart_however_near(one: str, other: str) -> None:
    assert len((await reach(one, other, meaning=Alike())).groups) == 2
    assert len((await reach(other, one, meaning=Alike())).groups) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 5.0 Å long", "Its length is 5 Å"),
        ("Two dogs", "2 hounds"),
        ("One dog", "1 hound"),
        ("No, it is not stable", "No, that is really not stable at all"),
        ("Yes, it is", "Yes, indeed"),
        ("R rises", "R goes up"),
        ("It is monoclinic", "The cell is a monoclinic one"),
    ],
)
async def test_what_is_not_in_contrast_may_be_one(one: str, other: str) -> None:
    assert len((await reach(one, other, meaning=Alike())).groups) == 1


async def test_only_texts_have_a_meaning() -> None:
    outcome = await reach(1, True, {"a": 1}, [1], "1.0", "text", "word", meaning=Alike())
    assert sorted(len(group.participant_ids) for group in outcome.groups) == [1, 1, 1, 2, 2]


class Broken:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def embed(self, texts: Sequence[str]) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("away"),
        np.ones((3, 4)),
        np.ones(2),
        np.full((2, 4), np.nan),
        np.full((2, 4), np.inf),
        np.ones((2, 0)),
        np.zeros((2, 4)),
        "nonsense",
        None,
    ],
    ids=str,
)
async def test_where_meaning_fails_only_what_is_equal_is_one(answer: Any) -> None:
    outcome = await reach("one way", "a way", "A way.", meaning=Broken(answer))
    assert [group.share for group in outcome.groups] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
async def test_the_length_of_vectors_does_not_count(scale: float) -> None:
    places = {"red": (scale, 0.0), "rose": (1.0, 0.0)}
    outcome = await reach("red", "rose", "blue", meaning=Placed(places))
    assert outcome.groups[0].participant_ids == ("p0", "p1")


async def test_who_puts_it_in_other_words_has_kept_to_it() -> None:
    places = {"red": (1.0, 0.0), "rose": (0.95, 0.3), "blue": (0.0, 1.0)}
    earlier = [["rose", "blue"], ["blue", "blue"]]
    outcome = await reach(
        "blue",
        "red",
        earlier=[said(*turn) for turn in earlier],
        meaning=Placed(places),
    )
    assert [group.stable_since for group in outcome.groups] == [2, 3]
    outcome = await reach(
        "red",
        "blue",
        earlier=[said(*turn) for turn in earlier[:1]],
        meaning=Placed(places),
    )
    assert [group.stable_since for group in outcome.groups] == [1, 1]
