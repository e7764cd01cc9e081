"""What can be set, from the command line, the environment (BXMESH_…) or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bxmesh.client.endpoint import state_directory
from bxmesh.server.database.holdings import Holdings
from bxmesh.server.database.retention import Kept
from bxmesh.server.streams.mailboxes import MailboxOptions
from bxmesh.server.streams.seals import Seals, seals_of

Service = Literal["geometry", "registry", "agent", "functions", "security", "workers"]
SERVICES: tuple[Service, ...] = (
    "geometry",
    "registry",
    "agent",
    "functions",
    "security",
    "workers",
)

# The kernel takes 108 bytes for the path of a unix socket, with its final zero.
_LONGEST_SOCKET_DIR = 60
# As it was at first: what is confined has its temporary files elsewhere.
_TEMPORARY = Path(tempfile.gettempdir())


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bxmesh"


def _address(value: str) -> str:
    if value and not value.startswith("unix:"):
        host, _, port = value.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(
                f"{value!r} is neither HOST:PORT, with a port up to 65535, nor unix:PATH"
            )
    return value


Address = Annotated[str, AfterValidator(_address)]


class Settings(BaseSettings):
    """The settings of one `bxmesh serve`. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="BXMESH_", extra="forbid")

    state_dir: Path = Field(default_factory=state_directory)
    """Where the admin key, the bundles and the embedded Valkey's data live."""
    cache_dir: Path = Field(default_factory=_cache_directory)
    """Where what can be made again is kept, such as the restraint library made ready."""
    listen: Address = "127.0.0.1:50051"
    """HOST:PORT (port 0 takes a free one) or unix:PATH."""
    admin_listen: Address = ""
    """HOST:PORT or unix:PATH for channelz; empty means a unix socket in the state directory."""
    mesh_key_file: Path | None = None
    """The secret that all servers and workers of a mesh share; None means mesh.key in the state
    directory, made when it is not there."""
    adopt_redis: bool = False
    """Goes on with a Redis that a mesh with another key has used, without what that has sealed."""
    services: tuple[Service, ...] = SERVICES
    """Which services this process offers; `workers` starts geometry workers beside it."""
    redis_url: SecretStr = SecretStr("")
    """Redis or Valkey ≥ 7; empty starts the embedded one."""
    workers: int = Field(default=2, ge=0, le=256)
    """Geometry worker processes."""
    tls: bool = False
    """Turns TLS on, with what `bxmesh tls init` made in the state directory where no certificate
    is named."""
    tls_certificate: Path | None = None
    """PEM certificate chain; turns TLS on."""
    tls_key: Path | None = None
    """PEM private key of the certificate."""
    tls_client_ca: Path | None = None
    """PEM certificates that clients' certificates must be signed by: every client needs one then,
    and is the identity that it names unless it sends a key."""
    allow_insecure: bool = False
    """Listens on other than loopback addresses without TLS."""
    reflection: bool = True
    """Lets anyone ask which services there are."""

    max_bundle_bytes: int = Field(default=2 * 1024**3, gt=0)
    """The largest bundle."""
    bundle_lifetime: float = Field(default=7 * 86400.0, gt=0)
    """How long a bundle is kept unless its upload says otherwise."""
    max_bundle_lifetime: float = Field(default=90 * 86400.0, gt=0)
    """The longest an upload may ask for."""
    result_lifetime: float = Field(default=900.0, gt=0)
    """How long computed gradients, and the meaning of their request id, are kept."""

    heartbeat: float = Field(default=2.0, gt=0)
    """How often workers say that they live; after three missed ones they are gone."""
    queue_depth: int = Field(default=10_000, gt=0)
    """Calculations that may wait in one stream."""
    work_lease: float = Field(default=10.0, gt=0)
    """How long a worker may be silent before its work goes to another."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Tries of a calculation before it becomes a dead letter."""
    calculation_timeout: float = Field(default=3600.0, gt=0)
    """The most time a calculation gets when its caller sets no deadline."""

    max_share_seconds: float = Field(default=600.0, gt=0)
    """The most time that a share of a calculation may take before its worker is replaced."""

    warm_models: int = Field(default=16, ge=1)
    """Built models that a worker keeps."""
    warm_bytes: int = Field(default=4 * 1024**3, gt=0)
    """What they may take together, by estimate."""
    max_atoms: int = Field(default=200_000, ge=1)
    """The largest model."""
    max_batch_bytes: int = Field(default=1024**3, gt=0)
    """The largest batch of coordinates."""
    sandbox: Literal["on", "off", "require"] = "on"
    """Whether workers are confined: as far as the kernel can, not at all, or whole or not started."""
    sessions_per_worker: int = Field(default=64, ge=1)
    """Sessions that a worker serves at a time."""
    session_idle: float = Field(default=900.0, gt=0)
    """How long an unused session is remembered."""
    session_listen: Address = ""
    """Where workers serve sessions: empty means a unix socket, HOST:0 when servers are on other hosts."""

    mailbox_capacity: int = Field(default=10_000, ge=1)
    """Messages and tasks that may wait in one mailbox."""
    delivery_lease: float = Field(default=30.0, ge=1)
    """How long an agent may leave a delivery unanswered and unextended."""
    message_attempts: int = Field(default=5, ge=1, le=100)
    """Tries of a message before it becomes a dead letter."""
    message_history: int = Field(default=1000, ge=0)
    """Acknowledged messages of each mailbox that are kept for replay."""
    message_history_lifetime: float = Field(default=86400.0, gt=0)
    """How long they are kept after the last of them."""

    database_url: SecretStr = SecretStr("")
    """Where functions and definitions are kept: postgresql://USER@HOST/NAME or sqlite:///PATH; empty
    means mesh.db in the state directory."""
    function_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1, le=256)
    """Executions of functions that compute at a time."""
    function_sessions: int = Field(default=64, ge=1, le=1024)
    """Executions that may have begun: those that compute, and those that wait for what they have called
    or sleep. Each of these is a process. One identity may have half of them."""
    function_queue: int = Field(default=1000, ge=1)
    """Executions that may wait to begin or to go on."""
    max_functions: int = Field(default=1000, ge=1)
    """Functions that one identity may keep."""
    max_function_versions: int = Field(default=1000, ge=1)
    """Versions of one of them."""
    max_definitions: int = Field(default=1000, ge=1)
    """Definitions that one identity may keep."""
    max_definition_versions: int = Field(default=1000, ge=1)
    """Versions of one of them."""
    max_stored_bytes: int = Field(default=256 << 20, gt=0)
    """What the functions of one identity may take, and as much its definitions."""
    execution_days: float = Field(default=30.0, gt=0)
    """How many days an execution, or a run of a chain, is kept after it has ended."""
    max_executions: int = Field(default=100_000, ge=1)
    """Executions that have ended and are kept for one identity; the oldest goes first."""
    max_runs: int = Field(default=10_000, ge=1)
    """Runs of chains likewise."""
    max_history_bytes: int = Field(default=1 << 30, ge=16 << 20)
    """What these executions may take, and as much these runs."""
    max_open_executions: int = Field(default=2000, ge=1)
    """Durable executions of one identity that have not ended."""
    max_open_runs: int = Field(default=200, ge=1)
    """Runs of chains likewise."""
    max_open_conversations: int = Field(default=200, ge=1)
    """Conversations likewise."""

    embedding_url: str = ""
    """An OpenAI-compatible server, up to and with /v1, whose model tells what texts mean; empty means
    the packaged model, where it is installed."""
    embedding_model: str = ""
    """Its model."""
    embedding_dimension: int = Field(default=0, ge=0)
    """How many numbers that model's vectors have."""
    embedding_key: SecretStr = SecretStr("")
    """The key of that server."""
    qdrant_url: str = ""
    """A Qdrant server for vectors; empty means a folder in the state directory."""
    qdrant_key: SecretStr = SecretStr("")
    """The key of that server."""

    token_key_days: int = Field(default=30, ge=1)
    """How many days a key signs tokens before the next one does."""
    token_audiences: tuple[str, ...] = ()
    """Audiences of tokens that are taken besides the mesh itself."""
    audit_days: int = Field(default=365, ge=1)
    """How many days the audit log is kept."""

    activity_log: Path | None = None
    """A directory for JSON Lines by day of what agents, messages and tasks do; None keeps none."""
    activity_log_days: int = Field(default=30, ge=0)
    """How many days its files are kept after theirs."""
    activity_log_bytes: int = Field(default=256 * 1024**2, ge=4096)
    """The largest of its files; what a day has beyond that is dropped, and counted."""
    trace: str = ""
    """`console` or a file for traces; OTEL_EXPORTER_OTLP_ENDPOINT is heeded besides."""
    prometheus_port: int | None = None
    """The port of the metrics endpoint."""
    drain_grace: float = Field(default=10.0, ge=0)
    """How long a stop lets running calls finish."""

    @model_validator(mode="after")
    def _whole_embedding(self) -> Self:
        if self.embedding_url and not (self.embedding_model and self.embedding_dimension):
            raise ValueError(
                "an embedding server needs embedding_model and embedding_dimension besides its URL"
            )
        return self

    @property
    def mailbox_options(self) -> MailboxOptions:
        """How mailboxes behave; all servers of one mesh must agree on it."""
        return MailboxOptions(
            capacity=self.mailbox_capacity,
            lease=self.delivery_lease,
            max_attempts=self.message_attempts,
            history=self.message_history,
            history_lifetime=self.message_history_lifetime,
            seals=self.seals,
        )

    @property
    def function_holdings(self) -> Holdings:
        """How many functions an owner may keep."""
        return Holdings(
            "functions",
            self.max_functions,
            self.max_function_versions,
            self.max_stored_bytes,
            "Delete some versions.",
        )

    @property
    def definition_holdings(self) -> Holdings:
        """How many definitions an owner may keep."""
        return Holdings(
            "definitions",
            self.max_definitions,
            self.max_definition_versions,
            self.max_stored_bytes,
            "Delete the definition, or another, with all its versions.",
        )

    @property
    def kept_executions(self) -> Kept:
        """How much of the history of executions is kept."""
        return Kept(self.execution_days, self.max_executions, self.max_history_bytes)

    @property
    def kept_runs(self) -> Kept:
        """How much of the history of chains is kept."""
        return Kept(self.execution_days, self.max_runs, self.max_history_bytes)

    @property
    def seals(self) -> Seals:
        """What work items are sealed with. Raises what the file of the mesh key raises."""
        return seals_of(self.mesh_key_path)

    @property
    def mesh_key_path(self) -> Path:
        """Where the mesh key is."""
        return self.mesh_key_file or self.state_dir / "mesh.key"

    @property
    def certificate_paths(self) -> tuple[Path, Path] | None:
        """The server's certificate and its key, None without TLS.

        Raises ValueError when only one of them is named.
        """
        if self.tls_certificate is None and self.tls_key is None:
            folder = self.state_dir / "tls"
            return (folder / "server.pem", folder / "server.key") if self.tls else None
        if self.tls_certificate is None or self.tls_key is None:
            raise ValueError("TLS needs both --tls-certificate and --tls-key.")
        return self.tls_certificate, self.tls_key

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.state_dir / 'mesh.db'}"

    @property
    def bundle_dir(self) -> Path:
        """The content-addressed store."""
        return self.state_dir / "bundles"

    @property
    def run_dir(self) -> Path:
        """Where sockets live: in the state directory, unless its path is too long for a socket."""
        inside = self.state_dir / "run"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_DIR:
            return inside
        digest = hashlib.sha256(os.fsencode(self.state_dir.absolute())).hexdigest()[:16]
        return _TEMPORARY / f"bxmesh-{os.getuid()}-{digest}"

    def prepare_directories(self) -> None:
        """Creates the directories, readable by their owner only."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = self.run_dir.stat()
        if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
            raise PermissionError(
                f"{self.run_dir} must belong to you with mode 0700, because sockets are made in it."
            )


def complaints(error: ValidationError) -> list[str]:
    """Returns what is wrong with settings, for people."""
    return [
        ": ".join(
            filter(None, (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")))
        )
        for one in error.errors()
    ]
