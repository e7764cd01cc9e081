"""Ranked choice: instant run-off.

Each ballot counts for the first answer on it that is still in. Until one answer has more than half of the
ballots that still count, the one with the fewest goes. Where several have the fewest, that one
goes which stands lowest on all ballots together; then the least sure; then the one that was given last.
Two that are left with as many ballots each are a tie like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bxmesh.server.conversations.consensus.answers import Answer
from bxmesh.server.conversations.consensus.decision import Decision
from bxmesh.server.conversations.consensus.grouping import Groups
from bxmesh.server.conversations.consensus.polls import Poll
from bxmesh.server.conversations.consensus.ties import TieBreaker
from bxmesh.server.conversations.consensus.voices import AbstentionError, Table, read_any
from bxmesh.server.json_values import Json

__all__ = ["ranked"]

Ballot = Sequence[int]
"""Groups, the most liked first."""

# As many as there may be answers.
_LONGEST_RANKING = 64
# Longer ones must be written exactly as the answer is.
_LONGEST_ENTRY = 512


async def ranked(table: Table, groups: Groups, breaker: TieBreaker) -> Decision:
    """Returns what the rankings lead to. The share is that of all ballots in the last round."""
    ballots = _ballots(table, groups)
    in_front = Counter(ballot[0] for ballot in ballots)
    given = {groups[voice.key] for voice in table.now.values()}
    poll = Poll(table, groups, tally={group: in_front[group] for group in given})
    left = set(poll.members)
    while True:
        counts = _count(ballots, left)
        most = max(counts.values())
        leaders = [group for group in left if counts[group] == most]
        if 2 * most > sum(counts.values()):
            winner = poll.by_group[leaders[0]]
            break
        if len(left) == 2:
            winner = await breaker.choose(
                [each for each in poll.candidates(breaker) if poll.group_of(each) in left]
            )
            break
        left.remove(_last(ballots, left, counts, poll, breaker))
    return poll.decision(winner, breaker, share=most / len(ballots))


def _ballots(table: Table, groups: Groups) -> list[Ballot]:
    by_name = {voice.answer.participant_id: groups[voice.key] for voice in table.now.values()}
    # Participants go before answers: whoever asks for a ranking names them.
    as_written = {voice.answer.text: groups[voice.key] for voice in table.now.values()} | by_name
    known: dict[str, int | None] = {}

    def find(entry: Json) -> int | None:
        if not isinstance(entry, str):
            return _by_key(entry, groups)
        if entry not in known:
            known[entry] = as_written.get(entry)
            if known[entry] is None and len(entry) <= _LONGEST_ENTRY:
                known[entry] = _by_key(entry, groups)
        return known[entry]

    given = set(by_name.values())
    ballots: list[Ballot] = []
    for voice in table.now.values():
        named = [find(entry) for entry in voice.answer.ranking[:_LONGEST_RANKING]]
        # What somebody answered is what it likes, if only after all others.
        order = [group for group in named if group in given] + [groups[voice.key]]
        ballots.append(tuple(dict.fromkeys(group for group in order if group is not None)))
    return ballots


def _by_key(entry: Json, groups: Groups) -> int | None:
    try:
        return groups.get(read_any(Answer("", value=entry), 0).key)
    except AbstentionError:
        return None


def _count(ballots: Sequence[Ballot], left: set[int]) -> dict[int, int]:
    counts = dict.fromkeys(left, 0)
    for ballot in ballots:
        first = next((group for group in ballot if group in left), None)
        if first is not None:
            counts[first] += 1
    return counts


def _last(
    ballots: Sequence[Ballot],
    left: set[int],
    counts: dict[int, int],
    poll: Poll,
    breaker: TieBreaker,
) -> int:
    fewest = min(counts.values())
    last = [group for group in left if counts[group] == fewest]
    if len(last) == 1:
        return last[0]
    points = _points(ballots, left)

    def standing(group: int) -> tuple[int, float, int, int]:
        candidate = poll.by_group[group]
        since, position = breaker.age(candidate)
        return points[group], round(candidate.confidence, 9), -since, -position

    return min(last, key=standing)


def _points(ballots: Sequence[Ballot], left: set[int]) -> dict[int, int]:
    """Twice how many answers stand below each, on all ballots; those not named share the last places."""
    points = dict.fromkeys(left, 0)
    for ballot in ballots:
        named = [group for group in ballot if group in left]
        for place, group in enumerate(named):
            points[group] += 2 * (len(left) - 1 - place)
        for group in left.difference(named):
            points[group] += len(left) - len(named) - 1
    return points
