"""What answers which request of calculations.proto, and the kind of work that it is."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from bxmesh.server.geometry.agent.run import Calculator

__all__ = ["CALCULATORS"]

CALCULATORS: Mapping[type[Message], Calculator] = {}
