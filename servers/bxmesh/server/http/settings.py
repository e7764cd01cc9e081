"""What can be set about the gateway, from the command line or the environment (BXMESH_HTTP_…)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bxmesh.client.endpoint import Endpoint

__all__ = ["HttpSettings"]


class HttpSettings(BaseSettings):
    """The settings of one `bxmesh http`. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="BXMESH_HTTP_", extra="forbid")

    address: str = Field(default="127.0.0.1:8080", pattern=r"^.+:\d{1,5}$")
    """HOST:PORT; port 0 takes a free one."""
    tls_certificate: Path | None = None
    """PEM certificate chain; turns TLS on."""
    tls_key: Path | None = None
    """PEM private key of the certificate."""
    allow_insecure: bool = False
    """Listens on other than loopback addresses without TLS."""
    cors_origins: tuple[str, ...] = ()
    """The origins whose pages may call, such as https://example.org; "*" lets all."""

    max_json_bytes: int = Field(default=2 * 1024**2, gt=0)
    """The largest body of JSON, and the largest message of a web socket."""
    max_upload_bytes: int = Field(default=64 * 1024**2, gt=0)
    """The largest body of files. They are held in memory while they are sent on."""
    max_requests: int = Field(default=64, gt=0)
    """Requests that are answered at a time, without streams."""
    max_uploads: int = Field(default=4, gt=0)
    """Of these, those that bring files."""
    max_streams: int = Field(default=256, gt=0)
    """Streams and web sockets that are open at a time."""
    max_refusals: int = Field(default=20, gt=0)
    """Wrong keys that one address on another machine may send in a minute."""

    request_timeout: float = Field(default=600.0, gt=0)
    """How long a request may take."""
    receive_timeout: float = Field(default=30.0, gt=0)
    """How long a client may pause while it sends a body."""
    send_timeout: float = Field(default=30.0, gt=0)
    """How long a client may leave what it is sent."""
    heartbeat: float = Field(default=15.0, gt=0)
    """How often a stream says something when nothing happens."""
    authentication_timeout: float = Field(default=10.0, gt=0)
    """How long a web socket may take to send its key."""
    drain_grace: float = Field(default=5.0, ge=0)
    """How long a stop lets what is under way finish."""

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """At which port."""
        return int(self.address.rpartition(":")[2])

    @property
    def certificate_paths(self) -> tuple[Path, Path] | None:
        """The certificate and its key; None without TLS.

        Raises ValueError when only one of them is named.
        """
        if self.tls_certificate is None and self.tls_key is None:
            return None
        if self.tls_certificate is None or self.tls_key is None:
            raise ValueError("TLS needs both --tls-certificate and --tls-key.")
        return self.tls_certificate, self.tls_key

    def refuse_insecure(self) -> None:
        """Raises ValueError where others could read keys and data on their way."""
        local = Endpoint(self.address).local
        if self.certificate_paths is None and not local and not self.allow_insecure:
            raise ValueError(
                f"{self.address} can be reached by others and TLS is off. Give --tls, or "
                "--tls-certificate and --tls-key, listen on 127.0.0.1, or say --allow-insecure."
            )
