"""What a worker process gives up before it reads the first file that somebody sent."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from bxmesh.server.settings import Settings

from . import landlock, seccomp

__all__ = ["Confinement", "confine", "possible"]

_log = logging.getLogger(__name__)

_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38
_MOST_FILES = 4096
_OTLP_PORTS = (4317, 4318)
# What Python, libraries and the resolver read. Not /home, not /root, not the state directory.
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc",
    "/proc",
    "/sys",
    "/opt",
    "/run/systemd/resolve",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/shm")


class Confinement(NamedTuple):
    """Which of the kernel's fences stand."""

    files: bool
    """Files outside the worker's directories cannot be opened (Landlock)."""
    network: bool
    """TCP goes to Redis and to the collector of traces only (Landlock 4)."""
    calls: bool
    """Dangerous system calls fail (seccomp)."""

    @property
    def complete(self) -> bool:
        """Whether all of them do."""
        return self.files and self.network and self.calls


def possible() -> Confinement:
    """Returns which fences this kernel has."""
    kernel = landlock.version()
    return Confinement(kernel >= 1, kernel >= 4, seccomp.available())


def confine(settings: Settings) -> Confinement:
    """Confines this process, which must have one thread still; returns which fences stand.

    Raises OSError when all are required by the settings and one of them cannot be put up.
    """
    has = possible()
    if settings.sandbox == "require" and not has.complete:
        raise OSError(
            f"The sandbox of workers is required, and this kernel cannot put it up whole ({has}). "
            "`bxmesh doctor` says more."
        )
    _limit_resources()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return Confinement(False, False, False)
    writable = _writable(settings)
    if has.files:
        landlock.restrict(_readable(settings), writable, _ports(settings))
    # What is temporary lies with what is the worker's own.
    tempfile.tempdir = str(settings.cache_dir)
    if has.calls:
        seccomp.refuse_dangerous_calls()
    if not has.complete:
        _log.warning("this kernel confines workers in part only: %s", has)
    return has


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _readable(settings: Settings) -> list[Path]:
    roots = {*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *(p for p in sys.path if p)}
    roots |= {str(Path(module).parent) for module in _package_files()}
    return sorted(Path(root) for root in roots)


def _package_files() -> list[str]:
    # Those of editable installs lie anywhere.
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [file for file in files if isinstance(file, str)]


def _writable(settings: Settings) -> list[Path]:
    paths = [settings.bundle_dir, settings.cache_dir, settings.run_dir, *map(Path, _DEVICES)]
    if settings.trace and settings.trace != "console":
        trace = Path(settings.trace)
        paths.append(trace if trace.is_file() else trace.parent)
    for path in (settings.bundle_dir, settings.cache_dir):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return paths


def _ports(settings: Settings) -> set[int]:
    ports = set(_OTLP_PORTS)
    for url in (
        settings.redis_url.get_secret_value(),
        *(value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_OTLP")),
    ):
        try:
            port = urlsplit(url).port
        except ValueError:
            port = None
        if port:
            ports.add(port)
        elif url.startswith("redis"):
            ports.add(6379)
    return ports
