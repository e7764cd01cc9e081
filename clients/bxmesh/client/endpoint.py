"""Where the mesh is and what opens it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from pydantic import BaseModel, ValidationError

from bxmesh.client.names import invalid

__all__ = ["DEFAULT_ADDRESS", "Endpoint", "find_server", "resolve", "state_directory"]

DEFAULT_ADDRESS = "127.0.0.1:50051"
_LOCAL = re.compile(r"unix(-abstract)?:.+|(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+")


class _RunningServer(BaseModel):
    pid: int
    address: str
    tls: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A server's address with what is needed to talk to it."""

    address: str
    """HOST:PORT or unix:PATH."""
    api_key: str = field(default="", repr=False)
    """The key sent as bearer token; empty for none."""
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    """TLS credentials; None for plain text."""

    @property
    def local(self) -> bool:
        """Whether the address can only be on this machine."""
        return _LOCAL.fullmatch(self.address) is not None


def state_directory(path: str | Path | None = None) -> Path:
    """Returns the directory in which a local server keeps its state."""
    if path is not None:
        return Path(path)
    if configured := os.environ.get("BXMESH_STATE_DIR"):
        return Path(configured)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "bxmesh"


def find_server(state_dir: str | Path | None = None) -> tuple[str, bool] | None:
    """Returns the running local server's address and whether it wants TLS; None without one."""
    try:
        text = (state_directory(state_dir) / "server.json").read_text()
        server = _RunningServer.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return (server.address, server.tls) if _alive(server.pid) else None


def resolve(
    address: str | None = None,
    *,
    api_key: str | None = None,
    tls: bool | None = None,
    root_certificates: bytes | str | Path | None = None,
    client_certificate: str | Path | None = None,
    client_key: str | Path | None = None,
    state_dir: str | Path | None = None,
    allow_insecure: bool | None = None,
) -> Endpoint:
    """Returns the endpoint that the arguments, the environment and the state directory name.

    The address is the argument's, that of `BXMESH_ADDRESS`, the running local server's, or
    127.0.0.1:50051. The key is the argument's, that of `BXMESH_API_KEY`, or, for an address on this
    machine, the admin key in the state directory. Certificates are the arguments', those of
    `BXMESH_ROOT_CERTIFICATES`, `BXMESH_CLIENT_CERTIFICATE` and `BXMESH_CLIENT_KEY`, or the
    authority's that `bxmesh tls init` made for a server on this machine. Raises InvalidInput for
    unreadable certificates, and for a key that would go to another machine without TLS, unless
    `allow_insecure` or BXMESH_ALLOW_INSECURE=1 says so.
    """
    root_certificates = root_certificates or os.environ.get("BXMESH_ROOT_CERTIFICATES")
    client_certificate = client_certificate or os.environ.get("BXMESH_CLIENT_CERTIFICATE")
    client_key = client_key or os.environ.get("BXMESH_CLIENT_KEY")
    address = address or os.environ.get("BXMESH_ADDRESS")
    server_tls = False
    if not address:
        address, server_tls = find_server(state_dir) or (DEFAULT_ADDRESS, False)
    if tls is None:
        tls = server_tls or root_certificates is not None
    local = _LOCAL.fullmatch(address) is not None
    if tls and root_certificates is None and local:
        made = state_directory(state_dir) / "tls" / "ca.pem"
        root_certificates = made if made.is_file() else None
    credentials = None
    if tls:
        certificate = _certificates(client_certificate, "client_certificate")
        credentials = grpc.ssl_channel_credentials(
            _certificates(root_certificates, "root_certificates"),
            _certificates(client_key, "client_key"),
            certificate,
        )
    key = api_key or os.environ.get("BXMESH_API_KEY") or ""
    if not key and local and not (tls and client_certificate):
        key = _admin_key(state_dir)
    if allow_insecure is None:
        allow_insecure = os.environ.get("BXMESH_ALLOW_INSECURE") == "1"
    if key and not tls and not local and not allow_insecure:
        raise invalid(
            "tls",
            f"the key would go to {address} in plain text; use TLS (--tls, --root-certificates), or "
            "set BXMESH_ALLOW_INSECURE=1 where nobody can listen",
            "PLAINTEXT_KEY",
        )
    return Endpoint(address, key, credentials)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _admin_key(state_dir: str | Path | None) -> str:
    try:
        return (state_directory(state_dir) / "admin.key").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _certificates(source: bytes | str | Path | None, field: str) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise invalid(
            field, f"{source} cannot be read: {error.strerror}", "UNREADABLE_FILE"
        ) from error
