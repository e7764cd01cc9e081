"""What keeps texts apart however near their embeddings are.

Embeddings see what a text is about better than what it says about it: "5 Å" is near "6 Å", and
"stable" near "not stable". So texts are the same in meaning only when they have the same numbers,
the same yes or no, the same words under each negation and comparison, no opposites, and not merely
the same words in another order. The words are English; of other languages only negations are known.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.consensus.numbers import is_unit

__all__ = ["in_contrast"]


def _words(text: str) -> list[str]:
    return text.split()


_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        _words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
} | {
    word: word
    for word in _words(
        "thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half third "
        "quarter twice once double triple first second fourth fifth dozen"
    )
}
_VERDICTS = {
    **dict.fromkeys(("yes", "yeah", "yep", "true", "correct", "right", "ja", "oui", "sí"), "yes"),
    **dict.fromkeys(("no", "nope", "false", "incorrect", "wrong", "nein", "non"), "no"),
}
_NEGATIONS = frozenset(
    _words(
        "not no never none nothing nobody neither nor cannot without hardly scarcely barely lacks lack "
        "lacking fails fail failed absent nicht kein keine keinen nie ohne ne pas jamais sans nunca sin"
    )
)
_RELATIONS = frozenset(_words("than before after instead except unless"))
# What may stand between such a word and what it bears on.
_LIGHT = frozenset(
    _words(
        "a an the is are was were be been being it its this that there of do does did has have had very "
        "really at all any to in on"
    )
)
_OPPOSITES: tuple[tuple[str, str], ...] = (
    (
        "increase increases increased increasing rise rises rose up",
        "decrease decreases decreased fall falls decreasing drop drops fell down",
    ),
    ("more higher greater larger bigger above over", "less lower smaller fewer below under"),
    ("most highest greatest largest maximum max", "least lowest smallest fewest minimum min"),
    ("always all every", "sometimes some few rarely"),
    ("better best good improve improves improved", "worse worst bad worsen worsens worsened"),
    ("positive", "negative"),
    ("left", "right"),
    ("north", "south"),
    ("east", "west"),
    ("before earlier", "after later"),
    ("stable", "unstable"),
    ("possible", "impossible"),
    ("likely", "unlikely"),
    ("present", "absent"),
    ("same equal", "different unequal"),
    ("open", "closed"),
    ("on", "off"),
    ("accept accepts accepted", "reject rejects rejected"),
    ("safe", "unsafe"),
    ("valid", "invalid"),
    ("true", "false"),
    ("correct", "incorrect wrong"),
    ("hot warm", "cold cool"),
    ("fast faster", "slow slower"),
    ("strong stronger strongly", "weak weaker weakly"),
    ("active", "inactive"),
    ("bound", "unbound"),
    ("ordered", "disordered"),
    ("symmetric", "asymmetric"),
)
_SIDES = {
    word: (axis, side)
    for axis, sides in enumerate(_OPPOSITES)
    for side, words in enumerate(sides)
    for word in words.split()
}


def in_contrast(texts: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Returns for each two different texts in their normal form whether they say different things for
    sure, of shape (texts, texts)."""
    apart = _differ([_fixed(words) for words in texts])
    apart |= ~_differ([tuple(sorted(words)) for words in texts])
    sides = np.zeros((2, len(texts), len(_OPPOSITES)), dtype=np.int64)
    for index, words in enumerate(texts):
        for axis, side in {_SIDES[word] for word in words if word in _SIDES}:
            sides[side, index, axis] = 1
    # Whatever names both sides of an axis is on neither.
    one, other = sides * (sides.sum(axis=0) == 1)
    opposed = one @ other.T
    apart |= (opposed + opposed.T) > 0
    return apart


def _differ(values: Sequence[Hashable]) -> NDArray[np.bool_]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    column = np.array([numbers[value] for value in values])
    different: NDArray[np.bool_] = column[:, None] != column
    return different


def _fixed(words: Sequence[str]) -> Hashable:
    """Returns what must be the same: numbers, verdict, and what negations and comparisons bear on."""
    return (
        tuple(sorted(_numbers(words))),
        _VERDICTS.get(words[0].rstrip(",")),
        frozenset(_borne(words)),
    )


def _numbers(words: Sequence[str]) -> Iterator[str]:
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word == "one" and (not following or following in _LIGHT):
            # It stands for something: "a cubic one", "one of them".
            continue
        if word in _NUMBER_WORDS:
            yield _NUMBER_WORDS[word]
        elif any(map(str.isdigit, word)):
            yield word
        else:
            continue
        if is_unit(following):
            yield following


def _borne(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for index, word in enumerate(words):
        negates = word in _NEGATIONS or word.endswith("n't")
        # The verdict in front is looked at by itself.
        if (negates and (index or word not in _VERDICTS)) or word in _RELATIONS:
            rest = (later for later in words[index + 1 :] if later not in _LIGHT)
            yield ("not" if negates else word, next(rest, ""))
