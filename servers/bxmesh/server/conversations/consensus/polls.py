"""Votes on groups of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from bxmesh.server.conversations.consensus.answers import Candidate
from bxmesh.server.conversations.consensus.decision import Decision, Votes, mean_sureness
from bxmesh.server.conversations.consensus.grouping import Groups
from bxmesh.server.conversations.consensus.ties import TieBreaker
from bxmesh.server.conversations.consensus.voices import Table, Voice
from bxmesh.server.errors import failed_precondition
from bxmesh.server.json_values import Json

__all__ = ["Poll", "equal_votes", "votes_by_weight"]

_LONGEST_TEXT = 4096


def equal_votes(voice: Voice) -> Votes:
    """One for each."""
    return 1


def votes_by_weight(voice: Voice) -> Votes:
    """The participant's weight, as it is written in decimals: 0.1 and 0.2 are as much as 0.3."""
    return Fraction(repr(voice.answer.weight))


class Poll:
    """The answers that were given, and their votes."""

    def __init__(
        self,
        table: Table,
        groups: Groups,
        votes: Callable[[Voice], Votes] = equal_votes,
        tally: Mapping[int, Votes] | None = None,
    ) -> None:
        """Takes the votes of each group from `tally`, or counts those who gave its answers.

        Raises MeshError, FAILED_PRECONDITION and NO_VOTES, where all votes together are none.
        """
        self.table = table
        self.groups = groups
        self.votes = votes
        self.members: dict[int, list[Voice]] = {}
        for voice in table.now.values():
            self.members.setdefault(groups[voice.key], []).append(voice)
        if tally is None:
            tally = {group: sum(map(votes, voices)) for group, voices in self.members.items()}
        self.tally = tally
        self.total = sum(tally.values())
        if not self.total:
            raise failed_precondition(
                "All who have answered have the weight 0; give somebody more",
                reason="NO_VOTES",
                subject="consensus",
            )
        self.by_group = {group: self._candidate(group) for group in self.members}

    def candidates(self, breaker: TieBreaker) -> list[Candidate]:
        """Returns all answers, most votes first; of those with as many, what a tie would choose."""
        order = sorted(
            self.by_group.items(),
            key=lambda item: (-self.tally[item[0]], -item[1].confidence, breaker.age(item[1])),
        )
        return [candidate for _, candidate in order]

    async def winner(self, breaker: TieBreaker, about: str = "") -> Candidate:
        """Returns the answer that has most votes."""
        most = max(self.tally.values())
        tied = [
            each for each in self.candidates(breaker) if self.tally[self.group_of(each)] == most
        ]
        return await breaker.choose(tied, about)

    def group_of(self, candidate: Candidate) -> int:
        """Returns the group that a candidate stands for."""
        return next(group for group, each in self.by_group.items() if each is candidate)

    def decision(
        self, winner: Candidate, breaker: TieBreaker, share: float | None = None
    ) -> Decision:
        """Returns the decision for an answer; `share` where it is not that of its group."""
        group = self.group_of(winner)
        value, text = _spoken_by(_first_voice(self.members[group]))
        return Decision(
            answer=value,
            text=text,
            share=winner.share if share is None else share,
            sureness=winner.confidence,
            supporters=frozenset(voice.position for voice in self.members[group]),
            agreement=[self._share_in(turn, group) for turn in self.table.earlier],
            groups=self.candidates(breaker),
        )

    def _candidate(self, group: int) -> Candidate:
        voices = self.members[group]
        value, text = _spoken_by(_first_voice(voices))
        since, position = min((self._since(voice, group), voice.position) for voice in voices)
        return Candidate(
            answer=_cut(value) if isinstance(value, str) else value,
            text=_cut(text),
            participant_ids=tuple(voice.answer.participant_id for voice in voices),
            share=float(self.tally[group] / self.total),
            confidence=mean_sureness((voice, self.votes(voice)) for voice in voices),
            stable_since=self.table.skipped + since,
            stable_participant_id=self.table.now[position].answer.participant_id,
        )

    def _since(self, voice: Voice, group: int) -> int:
        """Since which turn somebody has kept to an answer; turns without one do not count."""
        since = len(self.table.earlier) + 1
        for turn in range(len(self.table.earlier), 0, -1):
            said = self.table.earlier[turn - 1].get(voice.position)
            if said is None:
                continue
            if self.groups.get(said.key) != group:
                break
            since = turn
        return since

    def _share_in(self, turn: Mapping[int, Voice], group: int) -> float | None:
        total = sum(map(self.votes, turn.values()))
        if not total:
            return None
        agreed = (voice for voice in turn.values() if self.groups.get(voice.key) == group)
        return float(sum(map(self.votes, agreed)) / total)


def _first_voice(voices: list[Voice]) -> Voice:
    """Who speaks for all: the surest, then the shortest, then the first in the alphabet."""
    if len(voices) == 1:
        return voices[0]
    surest = max(voice.answer.sureness for voice in voices)
    return min(
        (voice for voice in voices if voice.answer.sureness == surest),
        key=lambda voice: (len(voice.written), voice.written, len(voice.text), voice.text),
    )


def _spoken_by(voice: Voice) -> tuple[Json, str]:
    return voice.value, voice.text or voice.written


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
