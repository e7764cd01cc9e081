"""Certificates for development: a local authority, and what it signs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["CA_FILE", "IDENTITY_URI", "Authority", "write_pair"]

CA_FILE = "ca.pem"
_CA_KEY_FILE = "ca.key"
IDENTITY_URI = "bxmesh://identity/"
"""How the subject alternative name of a client certificate begins that names an identity."""

_CA_DAYS = 3650
_SKEW = timedelta(minutes=5)

_Key = ec.EllipticCurvePrivateKey


class Authority:
    """A certificate authority in a directory, which signs for this mesh alone."""

    def __init__(self, certificate: x509.Certificate, key: _Key) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def load_or_create(cls, directory: Path) -> Authority:
        """Returns the authority of a directory; makes one where there is none.

        Raises ValueError for files that hold none, OSError for those that cannot be used.
        """
        certificate_path, key_path = directory / CA_FILE, directory / _CA_KEY_FILE
        if not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bxmesh local authority")])
            usage = x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            certificate = (
                _builder(name, name, key, _CA_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage, critical=True)
                .sign(key, hashes.SHA256())
            )
            write_pair(certificate_path, key_path, certificate, key)
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} is not the key of an authority that bxmesh made")
        return cls(x509.load_pem_x509_certificate(certificate_path.read_bytes()), loaded)

    def server(self, hosts: Sequence[str], days: int) -> tuple[x509.Certificate, _Key]:
        """Returns a new certificate for a server with these names and addresses, and its key."""
        names = [_host(host) for host in dict.fromkeys(hosts)]
        return self._sign("bxmesh server", names, ExtendedKeyUsageOID.SERVER_AUTH, days)

    def client(self, identity_id: str, days: int) -> tuple[x509.Certificate, _Key]:
        """Returns a new certificate for an identity, and its key."""
        uri = x509.UniformResourceIdentifier(IDENTITY_URI + identity_id)
        return self._sign(identity_id[:64], [uri], ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def _sign(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
    ) -> tuple[x509.Certificate, _Key]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(subject, self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate, key


def write_pair(
    certificate_path: Path, key_path: Path, certificate: x509.Certificate, key: _Key
) -> None:
    """Writes a certificate, and its key so that only its owner can read it."""
    certificate_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(
        key_path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        0o600,
    )
    _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    # Whole or not at all: a server may read it at this moment.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    draft.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: _Key, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
