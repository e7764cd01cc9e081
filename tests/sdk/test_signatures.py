"""Agents that sign their messages and verify those that come, over a whole mesh."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, InvalidInput, PermissionDenied
from bxmesh.client.agents import DeliveryMode
from bxmesh.client.cli import main
from bxmesh.security.v1 import credential_pb2, identity_pb2, policy_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.sdk.agents import Greeting, Recorder, Worker
from tests.sdk.conftest import client, start_mesh

MODES: list[DeliveryMode] = ["durable", "direct"]


@pytest.fixture(scope="module")
def server() -> Any:
    """A mesh of its own, for its policy is changed."""
    with start_mesh() as mesh:
        yield mesh


class Person:
    """An identity with an API key and a file that signs for it."""

    def __init__(self, server: EmbeddedMesh, secret: str, signing_key: Path) -> None:
        self._server = server
        self._secret = secret
        self.signing_key = signing_key

    def mesh(self, **options: Any) -> AsyncMesh:
        options.setdefault("signing_key", self.signing_key)
        return AsyncMesh(self._server.address, api_key=self._secret, **options)


async def person(server: EmbeddedMesh, folder: Path, name: str) -> Person:
    """Makes an identity, and its key by the command."""
    async with client(server) as admin:
        await admin.security.call(
            identity_pb2.CreateIdentityRequest(
                request_id=name,
                identity=identity_pb2.Identity(
                    identity_id=name, kind=identity_pb2.IDENTITY_KIND_AGENT, roles=["agent"]
                ),
            )
        )
        answer = await admin.security.call(
            credential_pb2.CreateApiKeyRequest(request_id=name, identity_id=name)
        )
    where = ["--address", server.address, "--state-dir", str(server.state_dir)]
    file = folder / f"{name}.pem"
    made = await asyncio.to_thread(
        CliRunner().invoke,
        main,
        ["security", "signing", "create", name, "--output", str(file), *where],
    )
    assert made.exit_code == 0, made.output
    listed = await asyncio.to_thread(
        CliRunner().invoke, main, ["security", "signing", "list", name, *where]
    )
    assert made.stdout.strip() in listed.stdout
    return Person(server, answer.secret, file)


@pytest.fixture
async def people(
    server: EmbeddedMesh, tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[Person, Person]:
    suffix = request.node.name.translate(str.maketrans("[]", "--")).strip("-")[-40:]
    return (
        await person(server, tmp_path, f"alice-{suffix}"),
        await person(server, tmp_path, f"bob-{suffix}"),
    )


@pytest.mark.parametrize("mode", MODES)
async def test_messages_and_answers_are_signed(
    people: tuple[Person, Person], mode: DeliveryMode
) -> None:
    alice, bob = people
    async with (
        alice.mesh(signatures="require") as first,
        bob.mesh(signatures="require") as second,
        Recorder().running(first) as recorder,
        Worker().running(second) as worker,
    ):
        reply = await recorder.mesh.request(
            worker.agent_id, "greeting.request", Greeting(text="hi"), mode=mode
        )
        assert reply.signed_by.startswith("bob-")
        assert reply.sender == worker.agent_id
        # An agent that the other identity knows nothing of, and one that sends as its identity.
        await worker.send(recorder.agent_id, "status.update", Greeting(text="1"), mode=mode)
        message = await recorder.next()
        assert (message.signed_by, message.sender) == (reply.signed_by, worker.agent_id)
        assert message.read(Greeting).text == "1"
        await second.send(recorder.agent_id, "status.update", Greeting(text="2"), mode=mode)
        message = await recorder.next()
        assert message.signed_by == message.sender == reply.signed_by
        assert message.create_time is not None
        # Who has just come is known to the server within a second.
        while recorder.got.empty():
            await second.broadcast("status.update", Greeting(text="3"), mode=mode)
            await asyncio.sleep(0.1)
        message = await recorder.next()
        assert (message.signed_by, message.read(Greeting).text) == (reply.signed_by, "3")


async def test_what_is_not_signed_is_refused_where_it_must_be(
    server: EmbeddedMesh, people: tuple[Person, Person]
) -> None:
    alice, bob = people
    async with (
        alice.mesh(signatures="require") as first,
        bob.mesh(signing_key=None) as second,
        client(server) as admin,
        Recorder().running(first) as recorder,
    ):
        await second.send(recorder.agent_id, "status.update", Greeting(text="not signed"))
        await first.send(recorder.agent_id, "status.update", Greeting(text="signed"))
        assert (await recorder.next()).read(Greeting).text == "signed"
        (letter,) = [each async for each in admin.dead_letters(agent_id=recorder.agent_id)]
        assert letter.error.reason == "SIGNATURE_REQUIRED"


async def test_the_policy_asks_for_signatures(
    server: EmbeddedMesh, people: tuple[Person, Person]
) -> None:
    alice, bob = people

    async def apply(admin: AsyncMesh, mode: Any) -> None:
        await admin.security.call(
            policy_pb2.ApplyPolicyRequest(policy=policy_pb2.Policy(signing_mode=mode))
        )

    async with (
        alice.mesh() as first,
        bob.mesh(signing_key=None) as second,
        client(server) as admin,
        Recorder().running(first) as recorder,
        Worker().running(first) as worker,
    ):
        await apply(admin, policy_pb2.SIGNING_MODE_REQUIRE)
        try:
            with pytest.raises(PermissionDenied) as raised:
                await second.send(recorder.agent_id, "status.update")
            assert raised.value.reason == "SIGNATURE_REQUIRED"
            await first.send(recorder.agent_id, "status.update")
            assert (await recorder.next()).signed_by
            # Answers, and reports of failures too.
            assert (
                await recorder.mesh.request(
                    worker.agent_id, "greeting.request", Greeting(text="hi")
                )
            ).signed_by
            with pytest.raises(Exception, match="of no use"):
                await recorder.mesh.request(worker.agent_id, "drop")
        finally:
            await apply(admin, policy_pb2.SIGNING_MODE_ACCEPT)


async def test_what_was_changed_in_a_mailbox_is_not_believed(
    server: EmbeddedMesh, people: tuple[Person, Person]
) -> None:
    """A server that was broken into, or a forger with the mesh's key."""
    alice, bob = people
    async with alice.mesh() as first, bob.mesh() as second, Recorder().running(first) as recorder:
        signatures = second._connection.signatures
        honest = signatures.sign

        async def forge(envelope: Any) -> Any:
            signed = await honest(envelope)
            signed.signature.signature = bytes(64)
            return signed

        async with client(server) as admin:
            await admin.security.call(
                policy_pb2.ApplyPolicyRequest(
                    policy=policy_pb2.Policy(signing_mode=policy_pb2.SIGNING_MODE_OFF)
                )
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(signatures, "sign", forge)
                await second.send(recorder.agent_id, "status.update", Greeting(text="forged"))
            await second.send(recorder.agent_id, "status.update", Greeting(text="honest"))
            assert (await recorder.next()).read(Greeting).text == "honest"
            letters = [each async for each in admin.dead_letters(agent_id=recorder.agent_id)]
            assert [each.error.reason for each in letters] == ["SIGNATURE_INVALID"]
            await admin.security.call(policy_pb2.ApplyPolicyRequest(policy=policy_pb2.Policy()))


async def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("junk")
    for file in (tmp_path / "key", tmp_path / "none"):
        with pytest.raises(InvalidInput, match="cannot be used"):
            AsyncMesh("127.0.0.1:1", signing_key=file)
    with pytest.raises(InvalidInput, match="none of"):
        AsyncMesh("127.0.0.1:1", signatures="maybe")  # type: ignore[arg-type]
