"""The certificate, tried in a handshake with itself."""

from __future__ import annotations

import ssl
import stat
import time
from pathlib import Path

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.settings import Settings

__all__ = ["check_tls"]

_DAY = 86400.0
_SOON_DAYS = 14.0


def check_tls(settings: Settings) -> list[Finding]:
    """Looks whether certificate and key can be read, belong together and are in time."""
    try:
        paths = settings.certificate_paths
    except ValueError:
        return [fail("tls", "one of two is missing", "Give both --tls-certificate and --tls-key.")]
    if paths is None:
        return [ok("tls", "off: for this machine only")]
    certificate, key = paths
    findings = []
    try:
        days = _days_left(certificate, key)
    except ssl.SSLCertVerificationError as error:
        message = f"{certificate}: {error.verify_message}"
        findings.append(fail("tls", message, "Renew the certificate, or look at the clock."))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        message = f"{certificate} with {key}: {reason}"
        findings.append(fail("tls", message, "Give PEM files that belong together."))
    else:
        message = f"{certificate} is good for {days:.0f} days"
        soon = warn("tls", message, "Renew the certificate.")
        findings.append(soon if days < _SOON_DAYS else ok("tls", message))
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        findings.append(warn("tls key", f"{key} is open to others", f"Run: chmod 600 {key}"))
    if settings.tls_client_ca is not None:
        findings.append(_client_ca(settings.tls_client_ca))
    return findings


def _days_left(certificate: Path, key: Path) -> float:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key with a passphrase must not make Python ask for it on the terminal; gRPC cannot use one.
    server.load_cert_chain(certificate, key, password=_no_passphrase)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate itself is trusted, whoever signed it.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
                if not end.server_side:
                    peer = end.getpeercert() or {}
            except ssl.SSLWantReadError:
                continue
    return (ssl.cert_time_to_seconds(str(peer["notAfter"])) - time.time()) / _DAY


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, which the server cannot ask for")


def _client_ca(path: Path) -> Finding:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        return fail("tls client ca", message, "Give PEM certificates of a certification authority.")
    return ok("tls client ca", str(path))
