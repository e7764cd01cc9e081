"""Whose a client certificate is, by its subject alternative names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .certificates import IDENTITY_URI
from .directory import Directory
from .identities import Identity

__all__ = ["CertificateAuthenticator"]

_CREDENTIAL = "certificate/"


class CertificateAuthenticator:
    """Knows identities by their certificates, which the transport has verified."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
        """Returns whose certificate is in the context of a transport, None for nobody's.

        A name `bxmesh://identity/NAME` is that identity's; any other is whose certificate_names
        have it. Only a TLS transport with a client authority puts names there.
        """
        if b"ssl" not in auth_context.get("transport_security_type", ()):
            return None
        for raw in auth_context.get("x509_subject_alternative_name", ()):
            identity = self._of(raw.decode("utf-8", "replace"))
            if identity is not None:
                return identity
        return None

    def renew(self, identity: Identity) -> Identity | None:
        """Returns an identity as it stands now by its certificate's name."""
        return self._of(identity.credential.removeprefix(_CREDENTIAL))

    def _of(self, name: str) -> Identity | None:
        identity_id = self._directory.by_certificate_name(name)
        if identity_id is None and name.startswith(IDENTITY_URI):
            identity_id = name.removeprefix(IDENTITY_URI)
        if identity_id is None or self._directory.identity(identity_id) is None:
            return None
        return self._directory.resolve(identity_id, None, _CREDENTIAL + name, float("inf"))
