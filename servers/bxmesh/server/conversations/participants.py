"""Who takes part in a conversation, as the server completes it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.errors import invalid_argument

__all__ = ["completed", "instructions_of", "judge_of", "weight_of"]

_DEFAULT_COUNT = 3
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_JUDGE = "judge"

# Different characters and temperatures, so that agreement means something.
_CHARACTERS = (
    pb.PERSONALITY_ANALYTICAL,
    pb.PERSONALITY_CREATIVE,
    pb.PERSONALITY_CRITICAL,
    pb.PERSONALITY_FACTUAL,
    pb.PERSONALITY_MEDIATING,
)
_TEMPERATURES = (0.2, 0.9, 0.5, 0.0, 0.7)

_TOLD = {
    pb.PERSONALITY_ANALYTICAL: "You take questions apart and reason step by step.",
    pb.PERSONALITY_CREATIVE: "You look for other ways than the obvious one.",
    pb.PERSONALITY_CRITICAL: "You look for faults in what is claimed, your own claims first.",
    pb.PERSONALITY_FACTUAL: "You go by evidence and measure, and name both.",
    pb.PERSONALITY_MEDIATING: "You seek what all can agree on without giving up what is true.",
}


def completed(spec: pb.ConversationSpec) -> list[pb.Participant]:
    """Returns a conversation's participants, each with a name of its own.

    Raises MeshError INVALID_ARGUMENT for two of one name.
    """
    given = list(spec.participants) or _defaults(spec.number_of_agents or _DEFAULT_COUNT)
    names: set[str] = set()
    for index, participant in enumerate(given):
        name = participant.participant_id
        if name in names:
            raise invalid_argument(
                f"spec.participants[{index}].participant_id", f"is the second {name!r}"
            )
        names |= {name} - {""}
    found = []
    for participant in given:
        one = pb.Participant()
        one.CopyFrom(participant)
        if not one.participant_id:
            one.participant_id = _free_name(_base_name(one), names)
            names.add(one.participant_id)
        found.append(one)
    return found


def judge_of(spec: pb.ConversationSpec) -> pb.Participant | None:
    """Returns the judge with a name; None when there is none."""
    if not spec.consensus.HasField("judge"):
        return None
    judge = pb.Participant()
    judge.CopyFrom(spec.consensus.judge)
    judge.participant_id = judge.participant_id or _JUDGE
    return judge


def instructions_of(participant: pb.Participant) -> str:
    """Returns what a participant is told beyond the question."""
    return "\n\n".join(filter(None, (_TOLD.get(participant.personality), participant.instructions)))


def weight_of(participant: pb.Participant) -> float:
    """Returns the weight of a participant in a weighted vote."""
    return participant.weight if participant.HasField("weight") else 1.0


def _defaults(count: int) -> list[pb.Participant]:
    found = []
    for index in range(count):
        place = index % len(_CHARACTERS)
        one = pb.Participant(personality=_CHARACTERS[place])
        one.model.temperature = _TEMPERATURES[place]
        found.append(one)
    return found


def _base_name(participant: pb.Participant) -> str:
    source = participant.WhichOneof("source")
    if source != "model":
        name = getattr(participant, source or "capability")
    elif participant.personality:
        name = pb.Personality.Name(participant.personality).removeprefix("PERSONALITY_").lower()
    else:
        name = participant.model.model or "model"
    return _NOT_IN_NAMES.sub("-", name).lstrip("._-")[:100] or "agent"


def _free_name(base: str, taken: Iterable[str]) -> str:
    used, name, number = set(taken), base, 1
    while name in used:
        number += 1
        name = f"{base}-{number}"
    return name
