"""How long it takes to find words among many messages."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, milliseconds
from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive import Archive, open_archive
from bxmesh.server.database import open_database
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.server.time_ids import time_id

MESSAGES = int(os.environ.get("BXMESH_BENCH_MESSAGES", "100000"))
QUERIES = 200
_TURNS = 99
_OWNERS = 20
_WORDS = 40
_VOCABULARY = 30_000
_GOAL_MS = 100.0


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="bx-") as folder:
        return asyncio.run(_searches(Path(folder)))


async def _searches(folder: Path) -> list[Figure]:
    """Queries of one to three words, from the most common to the rarest, by who sees all and by who
    sees a twentieth."""
    chance = random.Random(0)
    async with (
        open_database(f"sqlite:///{folder / 'mesh.db'}") as database,
        open_archive(database, None) as archive,
    ):
        began = time.perf_counter()
        for index in range(MESSAGES // (_TURNS + 1)):
            await archive.save(_conversation(chance, f"owner{index % _OWNERS}"))
        saved = time.perf_counter() - began
        operator = Identity("root", "admin", frozenset({EVERYTHING}))
        figures = [
            Figure(
                f"saving one of {MESSAGES:,} messages, with its words",
                saved / MESSAGES * 1e3,
                "ms",
            )
        ]
        for who, identity in (("all", operator), ("a twentieth", Identity("owner3", "user"))):
            seconds = sorted(
                [await _timed(archive, identity, _text(chance, 1 + n % 3)) for n in range(QUERIES)]
            )
            figures.append(
                Figure(
                    f"finding words in {MESSAGES:,} messages, p95, of whom sees {who}",
                    statistics.quantiles(seconds, n=20)[-1] * 1e3,
                    "ms",
                    at_most=_GOAL_MS,
                    details="p50 / longest "
                    + milliseconds(statistics.median(seconds), seconds[-1]),
                )
            )
    return figures


async def _timed(archive: Archive, identity: Identity, query: str) -> float:
    began = time.perf_counter()
    request = archive_pb.SearchConversationsRequest(query=query, page_size=20)
    await archive.search(request, identity)
    return time.perf_counter() - began


def _conversation(chance: random.Random, owner: str) -> pb.Conversation:
    conversation = pb.Conversation(
        conversation_id=time_id(),
        spec=pb.ConversationSpec(message=_text(chance, _WORDS)),
        state=pb.CONVERSATION_STATE_COMPLETED,
        owner=owner,
        revision=1,
        turns=[
            pb.Turn(turn=turn, participant_id="ann", text=_text(chance, _WORDS))
            for turn in range(1, _TURNS + 1)
        ],
    )
    conversation.create_time.GetCurrentTime()
    return conversation


def _text(chance: random.Random, words: int) -> str:
    """Words as common as those of a language: the n-th as 1/n."""
    return " ".join(f"w{int(_VOCABULARY ** chance.random())}" for _ in range(words))
