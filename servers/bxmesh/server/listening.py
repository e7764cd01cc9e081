"""Where a server listens: addresses, TLS, and the file that tells clients on this machine."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import grpc

from bxmesh.server.settings import Settings

SERVER_FILE = "server.json"
_LOOPBACK_NAMES = frozenset({"localhost", "::1", "[::1]"})


class InsecureListenError(ValueError):
    """Listening there without TLS would let others read keys and data."""


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host = address.rpartition(":")[0]
    return address.startswith("unix:") or host in _LOOPBACK_NAMES or host.startswith("127.")


def add_port(server: grpc.aio.Server, address: str, settings: Settings) -> str:
    """Binds a server and returns the address with the port it got.

    Raises InsecureListenError for other than loopback without TLS, OSError when the address is taken.
    """
    credentials = _tls(settings)
    if credentials is None and not is_local(address) and not settings.allow_insecure:
        raise InsecureListenError(
            f"{address} can be reached by others and TLS is off. Give --tls-certificate and --tls-key, "
            "listen on 127.0.0.1, or say --allow-insecure."
        )
    _refuse_taken(address)
    try:
        port = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"{address} cannot be listened on: {error}") from error
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).chmod(0o600)
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def write_server_file(settings: Settings, address: str, admin_address: str) -> Path:
    """Tells clients on this machine where the server is."""
    path = settings.state_dir / SERVER_FILE
    draft = path.with_name(f".{SERVER_FILE}.{os.getpid()}")
    draft.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "address": address,
                "tls": settings.tls_certificate is not None,
                "admin_address": admin_address,
            }
        )
    )
    draft.replace(path)
    return path


def _tls(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise ValueError("TLS needs both --tls-certificate and --tls-key.")
    clients = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())],
        root_certificates=clients,
        require_client_auth=clients is not None,
    )


def _refuse_taken(address: str) -> None:
    # gRPC would share the port, or silently replace the socket, of a server that is running.
    if not address.startswith("unix:"):
        return
    path = address.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except OSError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(f"another server listens on {address}")
