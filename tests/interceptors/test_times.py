"""Times that are none, wherever in a message they are."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import message_pb2
from bxmesh.registry.v1 import agent_pb2
from bxmesh.security.v1 import identity_pb2, policy_pb2
from bxmesh.server.interceptors.times import bad_times

GOOD = (Timestamp(), Timestamp(seconds=253_402_300_799, nanos=999_999_999))
BAD = (
    Timestamp(nanos=-1),
    Timestamp(nanos=1_000_000_000),
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=-(2**63)),
)


def test_timestamps() -> None:
    for time in GOOD:
        assert not list(bad_times(message_pb2.Envelope(expire_time=time)))
    for time in BAD:
        assert list(bad_times(message_pb2.Envelope(expire_time=time))) == ["expire_time"]
    assert not list(bad_times(message_pb2.Envelope()))


@pytest.mark.parametrize(
    "duration",
    [
        Duration(seconds=1, nanos=-1),
        Duration(seconds=-1, nanos=1),
        Duration(nanos=10**9),
        Duration(nanos=-(2**31)),
        Duration(seconds=2**62),
    ],
)
def test_durations_deep_within(duration: Duration) -> None:
    capability = agent_pb2.Capability(name="a", timeout=duration)
    request = agent_pb2.RegisterAgentRequest(capabilities=[agent_pb2.Capability(), capability])
    assert list(bad_times(request)) == ["capabilities[1].timeout"]
    policy = policy_pb2.ApplyPolicyRequest(
        policy=policy_pb2.Policy(execution_limits=[policy_pb2.ExecutionLimit(max_cpu=duration)])
    )
    assert list(bad_times(policy)) == ["policy.execution_limits[0].max_cpu"]


def test_nested_ones_in_lists() -> None:
    keys = [identity_pb2.MessageKey(expire_time=time) for time in (*GOOD, *BAD)]
    request = identity_pb2.CreateIdentityRequest(identity=identity_pb2.Identity(message_keys=keys))
    paths = [f"identity.message_keys[{i}].expire_time" for i in range(2, 6)]
    assert list(bad_times(request)) == paths
