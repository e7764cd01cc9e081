"""Values of Python as payloads, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, Field

from bxmesh.agent.v1.message_pb2 import JsonPayload, Payload
from bxmesh.agent.v1.task_pb2 import TaskProgress
from bxmesh.client import InvalidInput
from bxmesh.client.agents import PayloadMismatch
from bxmesh.client.agents.payloads import decode, encode, read
from bxmesh.client.agents.states import from_struct, to_struct


class Sample(BaseModel):
    name: str = Field(alias="sampleName")
    energy: float = math.nan
    tags: dict[str, int] = {}


@dataclass
class Point:
    x: float
    at: datetime


SAMPLE = Sample(sampleName="one", energy=-math.inf, tags={"a": 1})
PROGRESS = TaskProgress(percent=50, message="half")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        ({"a": [1, 2.5, None, "ä"]}, {"a": [1, 2.5, None, "ä"]}),
        ("text", "text"),
        (0, 0),
        (Point(1.5, datetime(2026, 1, 2, tzinfo=UTC)), {"x": 1.5, "at": "2026-01-02T00:00:00Z"}),
        (SAMPLE, {"sampleName": "one", "energy": "-Infinity", "tags": {"a": 1}}),
        (PROGRESS, PROGRESS),
    ],
)
def test_values(value: Any, plain: Any) -> None:
    assert decode(encode(value)) == plain


def test_models_come_back_as_they_were() -> None:
    assert read(encode(SAMPLE), Sample) == SAMPLE
    assert encode(SAMPLE).json.schema == "Sample"
    assert math.isnan(read(encode(Sample(sampleName="x")), Sample).energy)
    point = Point(1.5, datetime(2026, 1, 2, tzinfo=UTC))
    assert read(encode(point), Point) == point
    assert read(encode(PROGRESS), TaskProgress) == PROGRESS
    assert read(encode([1, 2]), list[int]) == [1, 2]


def test_other_languages_ways_are_read_too() -> None:
    assert read(encode({"percent": 50, "message": "half"}), TaskProgress) == PROGRESS
    assert read(encode(to_struct({"sampleName": "x", "tags": {"b": 2}})), Sample).tags == {"b": 2}
    assert read(Payload(), TaskProgress) == TaskProgress()


def test_what_is_packed_stays_packed() -> None:
    unknown = AnyMessage(type_url="type.googleapis.com/nobody.knows.Me", value=b"\x08\x01")
    assert encode(unknown).protobuf == unknown
    assert decode(encode(unknown)) == unknown
    payload = encode({"a": 1})
    assert encode(payload) is payload


@pytest.mark.parametrize(
    ("payload", "model", "said"),
    [
        (encode({"energy": 1}), Sample, "sampleName"),
        (encode({"sampleName": "x", "tags": {"a": "many"}}), Sample, "payload.tags.a"),
        (encode([]), Sample, "Sample"),
        (Payload(), Sample, "sampleName"),
        (encode(PROGRESS), Sample, "bxmesh.agent.v1.TaskProgress"),
        (encode(PROGRESS), JsonPayload, "not a bxmesh.agent.v1.JsonPayload"),
        (encode({"percent": "much"}), TaskProgress, "TaskProgress"),
        (encode({"sorts": 1}), TaskProgress, "sorts"),
        (Payload(json=JsonPayload(json="{")), Sample, "JSON"),
        (Payload(json=JsonPayload(json="")), TaskProgress, "TaskProgress"),
    ],
)
def test_what_does_not_fit_is_named(payload: Payload, model: Any, said: str) -> None:
    with pytest.raises(PayloadMismatch, match="payload") as raised:
        read(payload, model)
    error = raised.value
    assert error.reason == "PAYLOAD_MISMATCH"
    assert said in error.message
    assert error.field_violations


def test_a_damaged_message() -> None:
    damaged = AnyMessage(type_url="type.googleapis.com/bxmesh.agent.v1.TaskProgress", value=b"\xff")
    for call in (lambda: read(encode(damaged), TaskProgress), lambda: decode(encode(damaged))):
        with pytest.raises(PayloadMismatch):
            call()
    with pytest.raises(PayloadMismatch):
        decode(Payload(json=JsonPayload(json="{")))


def test_what_has_no_json() -> None:
    with pytest.raises(InvalidInput, match="no JSON"):
        encode(object())


def test_states_keep_whole_numbers() -> None:
    value = {"n": 3, "x": 0.5, "deep": [{"m": -2, "none": None, "yes": True}]}
    back = from_struct(to_struct(value))
    assert back == value
    assert isinstance(back["n"], int)
    assert from_struct(Struct()) == {}
    with pytest.raises(InvalidInput, match="no JSON"):
        to_struct({"when": object()})
