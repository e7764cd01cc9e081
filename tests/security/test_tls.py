"""TLS: what is spoken, who is let in by a certificate, and what is taken up without a restart."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from redis.asyncio import Redis

from bxmesh.client.endpoint import resolve
from bxmesh.client.errors import InvalidInput
from bxmesh.security.v1 import identity_pb2, security_service_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.cli.tls import tls
from bxmesh.server.doctor.network import check_server
from bxmesh.server.listening import InsecureListenError, add_port
from bxmesh.server.security.certificates import Authority, write_pair
from bxmesh.server.security.guard import guard
from bxmesh.server.security.service import SecurityService
from bxmesh.server.settings import Settings
from bxmesh.server.unimplemented import offer
from tests.security.mesh import ADMIN, ADMIN_KEY, refused


def init(state_dir: Path, *arguments: str) -> Path:
    """Runs `bxmesh tls init`; returns where the certificates are."""
    result = CliRunner().invoke(tls, ["init", "--state-dir", str(state_dir), *arguments])
    assert result.exit_code == 0, result.output
    return state_dir / "tls"


@asynccontextmanager
async def secure(redis: Redis, state_dir: Path, **fields: Any) -> AsyncIterator[str]:
    settings = Settings(state_dir=state_dir, tls=True, **fields)
    settings.prepare_directories()
    async with guard(settings, redis, ADMIN_KEY) as secured:
        server = grpc.aio.server(interceptors=secured.interceptors())
        offer(server, security_service_pb2, SecurityService(secured.mesh))
        add_HealthServicer_to_server(HealthServicer(), server)
        address = add_port(server, "localhost:0", settings)
        await server.start()
        try:
            yield address
        finally:
            await server.stop(0)


def stub(address: str, folder: Path, client: str = "") -> tuple[grpc.aio.Channel, Any]:
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / f"client-{client}.key").read_bytes() if client else None,
        (folder / f"client-{client}.pem").read_bytes() if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.secure_channel(address, credentials, options)
    return channel, SecurityServiceStub(channel)


async def test_the_authority_stays_and_certificates_are_made_anew(tmp_path: Path) -> None:
    folder = init(tmp_path, "--client", "alice", "--host", "mesh.example")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("ca.key", "server.key", "client-alice.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    init(tmp_path)
    assert (folder / "ca.pem").read_bytes() == first["ca.pem"]
    assert (folder / "server.pem").read_bytes() != first["server.pem"]
    result = CliRunner().invoke(tls, ["init", "--state-dir", str(tmp_path), "--client", "../evil"])
    assert result.exit_code == 2


async def test_a_key_is_taken_over_tls(redis: Redis, tmp_path: Path) -> None:
    folder = init(tmp_path)
    async with secure(redis, tmp_path) as address:
        channel, security = stub(address, folder)
        async with channel:
            answer = await security.GetIdentity(
                identity_pb2.GetIdentityRequest(), metadata=ADMIN, timeout=10
            )
            assert answer.identity.identity_id == "admin"
            error = await refused(
                security.GetIdentity(identity_pb2.GetIdentityRequest(), timeout=10)
            )
            assert error.reason == "KEY_MISSING"


@pytest.mark.parametrize(
    ("version", "ciphers", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_3, None, True),
        (ssl.TLSVersion.TLSv1_2, None, True),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-SHA:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", True),
    ],
)
async def test_only_modern_tls_is_spoken(
    redis: Redis, tmp_path: Path, version: ssl.TLSVersion, ciphers: str | None, accepted: bool
) -> None:
    folder = init(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if ciphers:
        context.set_ciphers(ciphers)

    def handshake(address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            with (
                socket.create_connection((host, int(port)), 5) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as wrapped,
            ):
                return wrapped.version() is not None
        except (ssl.SSLError, ConnectionError):
            return False

    async with secure(redis, tmp_path) as address:
        assert await asyncio.to_thread(handshake, address) is accepted


async def test_a_certificate_says_who_calls(redis: Redis, tmp_path: Path) -> None:
    folder = init(tmp_path, "--client", "alice", "--client", "nobody")
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority.load_or_create(other)
    certificate, key = stranger.client("alice", 1)
    write_pair(folder / "client-eve.pem", folder / "client-eve.key", certificate, key)
    async with secure(redis, tmp_path, tls_client_ca=folder / "ca.pem") as address:
        channel, security = stub(address, folder, "alice")
        async with channel:
            me = identity_pb2.GetIdentityRequest()
            # A key counts more than the certificate.
            await security.CreateIdentity(
                identity_pb2.CreateIdentityRequest(
                    identity=identity_pb2.Identity(identity_id="alice", roles=["reader"])
                ),
                metadata=ADMIN,
                timeout=10,
            )
            answer = await security.GetIdentity(me, timeout=10)
            assert answer.identity.identity_id == "alice"
            assert "registry_read" in answer.effective_permissions
            error = await refused(
                security.ListIdentities(identity_pb2.ListIdentitiesRequest(), timeout=10)
            )
            assert error.reason == "PERMISSION_MISSING"
        channel, security = stub(address, folder, "nobody")
        async with channel:
            assert (await refused(security.GetIdentity(me, timeout=10))).reason == "KEY_MISSING"
        for client in ("eve", ""):
            channel, security = stub(address, folder, client)
            async with channel:
                error = await refused(security.GetIdentity(me, metadata=ADMIN, timeout=10))
                assert error.code is grpc.StatusCode.UNAVAILABLE


async def test_new_certificates_are_taken_up(redis: Redis, tmp_path: Path) -> None:
    folder = init(tmp_path)

    async def served(address: str) -> bytes:
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
        return certificate

    async with secure(redis, tmp_path) as address:
        first = await served(address)
        assert await served(address) == first
        init(tmp_path)
        os.utime(folder / "server.pem", (1, 1))
        assert await served(address) != first
        # What cannot be used leaves what is there.
        second = await served(address)
        (folder / "server.key").unlink()
        os.utime(folder / "server.pem", (2, 2))
        assert await served(address) == second


async def test_the_doctor_asks_a_server_that_asks_for_certificates(
    redis: Redis, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = init(short_dir, "--client", "alice")
    settings = Settings(state_dir=short_dir, tls=True, tls_client_ca=folder / "ca.pem")
    async with secure(redis, short_dir, tls_client_ca=folder / "ca.pem") as address:
        running = {"pid": os.getpid(), "address": address, "tls": True}
        (short_dir / "server.json").write_text(json.dumps(running))
        (finding,) = await asyncio.to_thread(check_server, settings)
        assert finding.level == "FAIL"
        assert "BXMESH_CLIENT_CERTIFICATE" in finding.remedy
        monkeypatch.setenv("BXMESH_CLIENT_CERTIFICATE", str(folder / "client-alice.pem"))
        monkeypatch.setenv("BXMESH_CLIENT_KEY", str(folder / "client-alice.key"))
        (finding,) = await asyncio.to_thread(check_server, settings)
        assert finding.level == "OK"
        monkeypatch.setenv("BXMESH_CLIENT_KEY", str(folder / "none.key"))
        (finding,) = await asyncio.to_thread(check_server, settings)
        assert "cannot be asked" in finding.message


async def test_what_must_not_be_served_is_not(tmp_path: Path) -> None:
    server = grpc.aio.server()
    with pytest.raises(InsecureListenError, match="bxmesh tls init"):
        add_port(server, "0.0.0.0:0", Settings(state_dir=tmp_path))
    with pytest.raises(FileNotFoundError, match="bxmesh tls init"):
        add_port(server, "0.0.0.0:0", Settings(state_dir=tmp_path, tls=True))


def test_no_key_goes_elsewhere_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BXMESH_API_KEY", "BXMESH_ALLOW_INSECURE", "BXMESH_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInput, match="plain text"):
        resolve("192.0.2.1:50051", api_key="bx_secret")
    assert resolve("192.0.2.1:50051", api_key="bx_secret", tls=True).credentials is not None
    assert resolve("192.0.2.1:50051", api_key="bx_secret", allow_insecure=True).api_key
    assert resolve("192.0.2.1:50051").api_key == ""
    monkeypatch.setenv("BXMESH_ALLOW_INSECURE", "1")
    assert "bx_secret" not in repr(resolve("192.0.2.1:50051", api_key="bx_secret"))
