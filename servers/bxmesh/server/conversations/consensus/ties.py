"""How a tie is broken: by confidence, then by the judge, then by the first stable answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bxmesh.server.conversations.consensus.answers import Candidate, Judge, Verdict

__all__ = ["TieBreaker"]

# A structured answer may have a tie in every field.
_MOST_VERDICTS = 16
_ORDER = ("", "confidence", "judge", "first_stable")
# Means that differ by less differ by rounding.
_DIGITS = 9

_logger = logging.getLogger(__name__)


class TieBreaker:
    """Breaks the ties of one consensus, and remembers how."""

    def __init__(self, judge: Judge | None, question: str, participants: Sequence[str]) -> None:
        self._judge = judge
        self._question = question
        self._positions = {name: index for index, name in enumerate(participants)}
        self._verdicts_left = _MOST_VERDICTS
        self.used = ""
        """The last means that any tie needed, as the contract names it; empty for no tie."""
        self.reasons: list[str] = []
        """What the judge said."""

    async def choose(self, candidates: Sequence[Candidate], about: str = "") -> Candidate:
        """Returns one of the candidates that are tied; `about` names a part of the answer."""
        if len(candidates) == 1:
            return candidates[0]
        surest = max(round(candidate.confidence, _DIGITS) for candidate in candidates)
        rest = [each for each in candidates if round(each.confidence, _DIGITS) == surest]
        if len(rest) == 1:
            return self._chosen(rest[0], "confidence")
        judged = await self.judge(rest, about)
        if judged is not None:
            return self._chosen(judged, "judge")
        return self._chosen(min(rest, key=self.age), "first_stable")

    async def judge(self, candidates: Sequence[Candidate], about: str = "") -> Candidate | None:
        """Returns what the judge decides for; None where there is none, or it cannot."""
        if self._judge is None or self._verdicts_left == 0:
            return None
        self._verdicts_left -= 1
        question = f"{self._question}\n\nWhich is right for {about}?" if about else self._question
        try:
            verdict = await self._judge.decide(question, tuple(candidates))
            chosen = _named(candidates, verdict)
        except Exception:
            _logger.warning("the judge cannot decide", exc_info=True)
            # It is slow or away, and would be so for the next.
            self._judge = None
            return None
        if verdict.reason:
            self.reasons.append(verdict.reason)
        return chosen

    def age(self, candidate: Candidate) -> tuple[int, int]:
        """Returns what is least for the first stable answer: since when, and whose it is."""
        return candidate.stable_since, self._positions[candidate.stable_participant_id]

    def _chosen(self, candidate: Candidate, means: str) -> Candidate:
        self.used = max(self.used, means, key=_ORDER.index)
        return candidate


def _named(candidates: Sequence[Candidate], verdict: Verdict) -> Candidate:
    if not 0 <= verdict.index < len(candidates):
        raise ValueError(f"{verdict.index} is none of {len(candidates)} candidates")
    return candidates[verdict.index]
