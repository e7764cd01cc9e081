"""The server that runs, or what is in the way of one."""

from __future__ import annotations

import json
import os
import platform
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bxmesh.client.endpoint import find_server, resolve
from bxmesh.client.errors import BxmeshError
from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.doctor.port_owner import port_owner
from bxmesh.server.health import REDIS, SERVING, STORAGE, WORKERS
from bxmesh.server.listening import SERVER_FILE, is_local
from bxmesh.server.settings import Settings
from bxmesh.server.worker_pool import HOST_CHARACTERS

__all__ = ["check_server", "check_socket_paths"]

_SECONDS = 3.0
# As the kernel has it, with a final zero.
_SOCKET_PATH_BYTES = 104 if platform.system() == "Darwin" else 108


def check_server(settings: Settings) -> list[Finding]:
    """Asks the running server how it is; without one, looks whether its place is free."""
    running = find_server(settings.state_dir)
    if running is not None:
        return [_health(*running, settings)]
    findings = [_place(settings)]
    if (settings.state_dir / SERVER_FILE).exists():
        message = "none runs; the last one was killed and its file is still there"
        findings.insert(0, ok("server", f"{message}, which the next one replaces"))
    else:
        findings.insert(0, ok("server", "none runs"))
    return findings


def check_socket_paths(settings: Settings) -> list[Finding]:
    """Looks whether the paths of unix sockets are short enough."""
    host = platform.node()[:HOST_CHARACTERS]
    paths = [settings.run_dir / f"geometry-{host}-00-00000000.sock"]
    for address in (settings.listen, settings.admin_listen, settings.session_listen):
        if address.startswith("unix:"):
            paths.append(Path(address.removeprefix("unix:")).absolute())
    longest = max(paths, key=lambda path: len(os.fsencode(path)))
    length = len(os.fsencode(longest)) + 1
    message = f"{length} of {_SOCKET_PATH_BYTES} bytes"
    if length > _SOCKET_PATH_BYTES:
        remedy = "Give a shorter --state-dir, TMPDIR or unix: address."
        return [fail("socket paths", f"{message}: {longest}", remedy)]
    return [ok("socket paths", message)]


def _health(address: str, tls: bool, settings: Settings) -> Finding:
    pid = json.loads((settings.state_dir / SERVER_FILE).read_text())["pid"]
    where = f"process {pid} on {address}"
    try:
        channel = _channel(address, tls, settings)
    except BxmeshError as error:
        return fail("server", f"{where} cannot be asked: {error.message}", "Mend that.")
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        if _serves(stub, ""):
            return ok("server", f"{where}, serving")
        ill = [name for name in (REDIS, STORAGE, WORKERS) if not _serves(stub, name)]
    except grpc.RpcError as error:
        message = f"{where} does not answer: {error.code().name}"
        remedy = f"Look at its log; if it hangs, run: kill {pid}"
        if tls and settings.tls_client_ca:
            remedy = f"Set BXMESH_CLIENT_CERTIFICATE and BXMESH_CLIENT_KEY, for it asks. {remedy}"
        return fail("server", message, remedy)
    finally:
        channel.close()
    remedy = "Look at its log; workers need some seconds after a start."
    return fail("server", f"{where}, not serving; not well: {', '.join(ill) or 'unknown'}", remedy)


def _channel(address: str, tls: bool, settings: Settings) -> grpc.Channel:
    """As a client of this machine would open it; raises BxmeshError for certificates of no use."""
    certificate = _certificate(settings)
    trusted = os.environ.get("BXMESH_ROOT_CERTIFICATES") or settings.tls_client_ca or certificate
    endpoint = resolve(
        address, tls=tls, root_certificates=trusted if tls else None, state_dir=settings.state_dir
    )
    if endpoint.credentials is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, endpoint.credentials)


def _serves(stub: Any, name: str) -> bool:
    response = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=_SECONDS)
    return bool(response.status == SERVING)


def _place(settings: Settings) -> Finding:
    address = settings.listen
    if not (is_local(address) or settings.allow_insecure or _certificate(settings)):
        remedy = "Give --tls-certificate and --tls-key, listen on 127.0.0.1, or --allow-insecure."
        return fail("address", f"{address} can be reached by others, without TLS", remedy)
    if address.startswith("unix:"):
        return _socket(Path(address.removeprefix("unix:")))
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        return fail("address", f"{address} is no address", "Give --listen HOST:PORT or unix:PATH.")
    if port == "0":
        return ok("address", f"{address}: any free port")
    try:
        family, kind, proto, _, target = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        return fail("address", f"{host} is unknown: {error}", "Give another --listen HOST:PORT.")
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            owner = port_owner(int(port))
            by = f", taken by {owner}" if owner else ""
            remedy = "End that process, or take another port: --listen HOST:PORT."
            return fail("address", f"{address}: {error.strerror}{by}", remedy)
    return ok("address", f"{address} is free")


def _socket(path: Path) -> Finding:
    if not path.parent.is_dir():
        return fail("address", f"{path.parent} does not exist", f"Run: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        return fail("address", f"{path.parent} cannot be written", "Give another --listen.")
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(_SECONDS)
        probe.connect(str(path))
        return warn(
            "address", f"{path}: another server listens", "Stop it, or give another --listen."
        )
    return ok("address", f"unix:{path} is free")


def _certificate(settings: Settings) -> Path | None:
    try:
        paths = settings.certificate_paths
    except ValueError:
        # Another finding says that one of two is missing.
        return None
    return paths[0] if paths else None
