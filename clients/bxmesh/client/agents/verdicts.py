"""What an agent makes of a delivery."""

from __future__ import annotations

from dataclasses import dataclass

from bxmesh.agent.v1 import delivery_pb2 as pb
from bxmesh.agent.v1 import message_pb2
from bxmesh.client.agents.failures import to_status
from bxmesh.client.agents.times import to_duration

__all__ = ["Verdict"]

_LONGEST_RETRY_SECONDS = 86400.0


@dataclass(frozen=True)
class Verdict:
    """An answer to a delivery that does not know yet to which."""

    verdict: pb.Verdict.ValueType
    """Acknowledged, to be tried again, or dropped."""
    error: BaseException | None = None
    """Why it failed."""
    retry_after: float | None = None
    """Not before so many seconds; None for the server's delay."""
    reply: message_pb2.Envelope | None = None
    """The message that answers it."""

    @classmethod
    def ack(cls, reply: message_pb2.Envelope | None = None) -> Verdict:
        """It is done."""
        return cls(pb.VERDICT_ACK, reply=reply)

    @classmethod
    def retry(cls, error: BaseException, after: float | None = None) -> Verdict:
        """It shall come again."""
        return cls(pb.VERDICT_RETRY, error=error, retry_after=after)

    @classmethod
    def drop(cls, error: BaseException, report: message_pb2.Envelope | None = None) -> Verdict:
        """It cannot be done; the report tells whoever sent it."""
        return cls(pb.VERDICT_DROP, error=error, reply=report)

    def answer(self, delivery_id: str) -> pb.Answer:
        """Returns the answer to a delivery."""
        after = self.retry_after
        return pb.Answer(
            delivery_id=delivery_id,
            verdict=self.verdict,
            error=None if self.error is None else to_status(self.error),
            retry_after=None if after is None else to_duration(min(after, _LONGEST_RETRY_SECONDS)),
            reply=self.reply,
        )
