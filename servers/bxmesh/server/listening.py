"""Where a server listens: addresses, TLS, and the file that tells clients on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

import grpc

from bxmesh.server.settings import Settings

SERVER_FILE = "server.json"
_log = logging.getLogger(__name__)
_LOOPBACK_NAMES = frozenset({"localhost", "::1", "[::1]"})


class InsecureListenError(ValueError):
    """Listening there without TLS would let others read keys and data."""


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host = address.rpartition(":")[0]
    return address.startswith("unix:") or host in _LOOPBACK_NAMES or host.startswith("127.")


def add_port(
    server: grpc.aio.Server, address: str, settings: Settings, *, inside: bool = False
) -> str:
    """Binds a server and returns the address with the port it got; one for `inside`, in a directory
    of our own, has no TLS.

    Raises InsecureListenError for other than loopback without TLS, OSError when the address is taken.
    """
    credentials = None if inside else _tls(settings)
    if credentials is None and not is_local(address) and not settings.allow_insecure:
        raise InsecureListenError(
            f"{address} can be reached by others and TLS is off. Run `bxmesh tls init` and give --tls, "
            "or --tls-certificate and --tls-key, listen on 127.0.0.1, or say --allow-insecure."
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
                "tls": settings.certificate_paths is not None,
                "admin_address": admin_address,
            }
        )
    )
    draft.replace(path)
    return path


def remove_sockets_of_the_dead(folder: Path) -> None:
    """Removes what servers left that were killed: `inside-PID-….sock`."""
    for path in folder.glob("inside-*.sock"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It is another user's.
        return True
    return True


def _tls(settings: Settings) -> grpc.ServerCredentials | None:
    paths = settings.certificate_paths
    if paths is None:
        return None
    certificates = _Certificates(*paths, settings.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        certificates.read(),
        certificates.changed,  # type: ignore[arg-type]  # None means that nothing has changed.
        require_client_authentication=settings.tls_client_ca is not None,
    )


class _Certificates:
    """Reads certificates, and again when their files have changed."""

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._read_at: tuple[float, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Returns what the files hold. Raises OSError for files that cannot be used."""
        for path in self._paths():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is not there; `bxmesh tls init` makes certificates."
                )
        if self._key.stat().st_mode & 0o077:
            _log.warning("%s can be read by others; run: chmod 600 %s", self._key, self._key)
        self._read_at = self._times()
        authority = self._client_authority
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())],
            root_certificates=authority.read_bytes() if authority else None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what the files hold when that is new; gRPC asks with each new connection."""
        try:
            return self.read() if self._times() != self._read_at else None
        except OSError as error:
            # A half-made change: what was read before serves on.
            _log.warning("the new certificates cannot be used: %s", error)
            return None

    def _paths(self) -> list[Path]:
        paths = [self._certificate, self._key]
        return paths if self._client_authority is None else [*paths, self._client_authority]

    def _times(self) -> tuple[float, ...]:
        return tuple(path.stat().st_mtime for path in self._paths())


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
